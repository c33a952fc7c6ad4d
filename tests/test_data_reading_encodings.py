"""Encodings: texts of many languages are decoded rightly, or refused by name; never damaged."""

from __future__ import annotations

import json
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fourstage.data.reading import (
    BadRow,
    RawFile,
    Unreadable,
    inspect_file,
    read_rows,
    read_rows_and_faults,
    read_text,
)

TEXTS: dict[str, tuple[str, tuple[str, ...]]] = {
    "simplified Chinese": (
        "清晨的雾还没有散去，渔夫已经把小船推到了河边。他的女儿坐在船头，手里拿着一本旧书，"
        "一边读一边问：“为什么河水总是向东流？”父亲笑了笑，说这个问题连老师也要想一想。"
        "我们今天要学习的内容很简单，大家先把课本打开，看第三页的图，然后回答下面两个问题。"
        "经济发展需要时间，也需要每个人的努力；没有人能够在一天之内解决所有的困难。"
        "晚上八点，城市里的灯都亮了，街上卖水果的人还在喊着苹果和橘子的价钱。",
        ("gb18030", "gbk", "gb2312"),
    ),
    "traditional Chinese": (
        "清晨的霧還沒有散去，漁夫已經把小船推到了河邊。他的女兒坐在船頭，手裡拿著一本舊書，"
        "一邊讀一邊問：「為什麼河水總是向東流？」父親笑了笑，說這個問題連老師也要想一想。"
        "我們今天要學習的內容很簡單，大家先把課本打開，看第三頁的圖，然後回答下面兩個問題。"
        "經濟發展需要時間，也需要每個人的努力；沒有人能夠在一天之內解決所有的困難。"
        "晚上八點，城市裡的燈都亮了，街上賣水果的人還在喊著蘋果和橘子的價錢。",
        ("big5", "cp950"),
    ),
    "Japanese": (
        "朝の霧がまだ残っているうちに、漁師は小さな船を川へ押し出した。娘は船の先に座って、"
        "古い本を読みながら「どうして川はいつも東へ流れるの」と聞いた。父は笑って、先生でも"
        "少し考えなければならない問題だと答えた。今日の授業では、みなさんに短い文章を書いて"
        "もらいます。テーブルの上のノートを開いて、三ページの絵を見てください。夜になると、"
        "町の灯りがともり、果物を売る人の声が通りに響いていた。",
        ("shift_jis", "cp932", "euc_jp"),
    ),
    "Korean": (
        "아침 안개가 아직 걷히지 않았는데 어부는 작은 배를 강가로 밀었다. 딸은 뱃머리에 앉아 "
        "오래된 책을 읽으면서 왜 강물은 항상 동쪽으로 흐르느냐고 물었다. 아버지는 웃으며 그것은 "
        "선생님도 조금 생각해야 하는 문제라고 대답했다. 오늘 수업에서는 여러분이 짧은 글을 쓰게 "
        "됩니다. 공책을 펴고 세 번째 쪽의 그림을 보세요. 밤이 되자 도시의 불이 모두 켜졌다.",
        ("euc_kr", "cp949"),
    ),
    "Russian": (
        "Утренний туман ещё не рассеялся, а рыбак уже столкнул лодку в воду. Его дочь сидела на "
        "носу и читала старую книгу. «Почему река всегда течёт на восток?» — спросила она. Отец "
        "улыбнулся и сказал, что над этим вопросом подумал бы и учитель. Сегодня на уроке мы "
        "напишем короткий рассказ: откройте тетради и посмотрите на рисунок. Вечером в городе "
        "зажглись огни, и продавцы фруктов всё ещё громко называли цены.",
        ("cp1251", "koi8_r", "iso8859_5", "cp866"),
    ),
    "Ukrainian": (
        "Ранковий туман ще не розвіявся, а рибалка вже зіштовхнув човен у воду. Його донька сиділа "
        "на носі й читала стару книжку. Чому річка завжди тече на схід? — спитала вона. Батько "
        "усміхнувся і сказав, що її питання цікаве. Увечері в місті засвітилися вогні.",
        ("cp1251", "koi8_u"),
    ),
    "Greek": (
        "Η πρωινή ομίχλη δεν είχε ακόμη διαλυθεί και ο ψαράς έσπρωξε τη βάρκα στο ποτάμι. Η κόρη "
        "του καθόταν στην πλώρη και διάβαζε ένα παλιό βιβλίο. Γιατί το ποτάμι κυλάει πάντα προς "
        "την ανατολή; ρώτησε. Ο πατέρας χαμογέλασε και είπε πως και ο δάσκαλος θα έπρεπε να το "
        "σκεφτεί. Το βράδυ άναψαν τα φώτα της πόλης και οι πωλητές φώναζαν ακόμη τις τιμές.",
        ("cp1253", "iso8859_7"),
    ),
    "French": (
        "La brume du matin ne s'était pas encore levée que le pêcheur poussait déjà sa barque vers "
        "la rivière. Sa fille, assise à l'avant, lisait un vieux livre. « Pourquoi l'eau coule-t-"
        "elle toujours vers l'est ? » demanda-t-elle. Son père sourit et répondit que même "
        "l'instituteur devrait y réfléchir. Le soir, les lumières de la ville s'allumèrent, et les "
        "marchands criaient encore le prix des pêches et des cerises. Ça n'a pas été très gênant.",
        ("iso8859_1", "cp1252"),
    ),
    "German": (
        "Der Morgennebel hatte sich noch nicht gelöst, da schob der Fischer schon sein Boot in den "
        "Fluss. Seine Tochter saß vorn und las ein altes Buch. Warum fließt das Wasser immer nach "
        "Osten? fragte sie. Der Vater lächelte und sagte, darüber müsse auch der Lehrer "
        "nachdenken. "
        "Heute schreiben wir eine kurze Geschichte: Öffnet die Hefte und schaut euch das Bild an. "
        "Abends gingen in der Stadt die Lichter an, und die Händler riefen noch für "
        "Äpfel und Grüße.",
        ("iso8859_1", "cp1252"),
    ),
    "Spanish": (
        "La niebla de la mañana aún no se había levantado cuando el pescador empujó su "
        "barca al río. "
        "Su hija, sentada en la proa, leía un libro viejo. ¿Por qué el agua corre siempre hacia el "
        "este?, preguntó la niña. El padre sonrió y dijo que también el maestro tendría "
        "que pensar. "
        "Por la noche se encendieron las luces de la ciudad y los niños soñaron con el "
        "año próximo.",
        ("iso8859_1", "cp1252"),
    ),
    "Polish": (
        "Poranna mgła jeszcze się nie rozeszła, a rybak już zepchnął łódkę do rzeki. Jego córka "
        "siedziała na dziobie i czytała starą książkę. Dlaczego woda zawsze płynie na wschód? "
        "zapytała. Ojciec uśmiechnął się i powiedział, że nad tym musiałby pomyśleć także "
        "nauczyciel. Wieczorem w mieście zapaliły się światła, a sprzedawcy wciąż głośno żądali "
        "pieniędzy za jabłka i śliwki.",
        ("cp1250", "iso8859_2"),
    ),
    "Czech": (
        "Ranní mlha se ještě nerozplynula a rybář už odstrčil loďku od břehu. Jeho dcera seděla na "
        "přídi a četla starou knížku. Proč řeka teče pořád na východ? zeptala se. Otec se usmál a "
        "řekl, že by nad tím musel přemýšlet i učitel. Večer se ve městě rozsvítila světla a "
        "prodavači ještě křičeli ceny jablek a hrušek. Žluťoučký kůň šel tiše domů.",
        ("cp1250", "iso8859_2"),
    ),
    "Hungarian": (
        "A reggeli köd még nem oszlott fel, amikor a halász már a vízre tolta a csónakját. A lánya "
        "elöl ült, és egy régi könyvet olvasott. Miért folyik a víz mindig kelet felé? kérdezte. "
        "Az apja elmosolyodott, és azt felelte, hogy ezen a tanító is elgondolkodna. "
        "Este kigyúltak "
        "a város fényei, és az árusok még mindig a gyümölcs árát kiabálták. Őszi eső "
        "hullott, hűvös.",
        ("cp1250", "iso8859_2"),
    ),
    "Turkish": (
        "Sabah sisi henüz dağılmamıştı ki balıkçı kayığını ırmağa itti. Kızı önde oturmuş eski bir "
        "kitap okuyordu. Su neden hep doğuya akar? diye sordu. Babası gülümsedi ve bunu öğretmenin "
        "bile düşünmesi gerektiğini söyledi. Akşam şehrin ışıkları yandı, satıcılar hâlâ "
        "meyvelerin "
        "fiyatını bağırıyordu. Bugün kısa bir öykü yazacağız, defterlerinizi açın.",
        ("cp1254", "iso8859_9"),
    ),
    "Hebrew": (
        "ערפל הבוקר עוד לא התפזר והדייג כבר דחף את הסירה אל הנהר. בתו ישבה בחרטום וקראה ספר ישן. "
        "למה המים זורמים תמיד מזרחה? שאלה. אביה חייך ואמר שגם המורה היה צריך לחשוב על כך. בערב "
        "נדלקו האורות בעיר והמוכרים עוד קראו בקול את מחירי הפירות.",
        ("cp1255", "iso8859_8"),
    ),
    "Arabic": (
        "لم يكن ضباب الصباح قد انقشع بعد حين دفع الصياد قاربه إلى النهر. كانت ابنته تجلس "
        "في المقدمة "
        "وتقرأ كتابا قديما. لماذا يجري الماء دائما نحو الشرق؟ سألت. ابتسم الأب وقال إن المعلم أيضا "
        "يحتاج إلى التفكير في ذلك. في المساء أضيئت أنوار المدينة وكان الباعة ينادون على الفواكه.",
        ("cp1256", "iso8859_6"),
    ),
    "Thai": (
        "หมอกยามเช้ายังไม่จางหาย แต่ชาวประมงก็ดันเรือลำเล็กลงแม่น้ำแล้ว "
        "ลูกสาวของเขานั่งอยู่ที่หัวเรือ "
        "และอ่านหนังสือเก่าเล่มหนึ่ง ทำไมน้ำจึงไหลไปทางตะวันออกเสมอ เธอถาม "
        "พ่อยิ้มแล้วตอบว่าแม้แต่ครู "
        "ก็ต้องคิดดูก่อน ตอนกลางคืนแสงไฟในเมืองสว่างขึ้น",
        ("tis_620", "cp874"),
    ),
    "Vietnamese": (
        "Sương sớm chưa tan mà người đánh cá đã đẩy thuyền ra sông.",
        (),
    ),
    "Bulgarian": (
        "Утринната мъгла още не беше се вдигнала, когато рибарят избута лодката в "
        "реката. Дъщеря му "
        "седеше отпред и четеше стара книга. Защо водата винаги тече на изток? попита "
        "тя. Бащата се "
        "усмихна и каза, че и учителят би трябвало да помисли. Вечерта светлините на "
        "града светнаха.",
        ("cp1251",),
    ),
}


def sample(language: str, length: int, encoding: str, seed: int = 0) -> bytes:
    """At least `length` bytes (the least whole number of sentences) in an encoding."""
    sentences = _sentences(TEXTS[language][0])
    draw = random.Random(f"{language} {length} {seed}")
    said: list[str] = []
    size = 0
    while size < length:
        said.append(draw.choice(sentences))
        size += len(said[-1].encode(encoding, "replace"))
    return "\n".join(said).encode(encoding, "replace")


def _sentences(text: str) -> list[str]:
    for end in "。.?？!":
        text = text.replace(end, end + "\0")
    return [part.strip() for part in text.split("\0") if len(part.strip()) > 8]


CASES = [(language, encoding) for language, (_, all_) in TEXTS.items() for encoding in all_]


def _file(folder, content: bytes, name: str = "a.txt") -> RawFile:
    path = folder / name
    path.write_bytes(content)
    return RawFile(path, name)


@pytest.mark.parametrize(("language", "encoding"), CASES)
def test_legacy_encodings_are_decoded_rightly(tmp_path, language: str, encoding: str) -> None:
    for length in (60, 300, 5000):
        content = sample(language, length, encoding)
        file = _file(tmp_path, content)
        try:
            text = read_text(file)
        except Unreadable as error:
            # Two encodings of a family may differ too little in a short text.
            assert length == 60 and "iconv -f" in error.why
        else:
            assert text == content.decode(encoding)


@pytest.mark.parametrize("language", TEXTS)
@pytest.mark.parametrize(
    "encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-be"]
)
def test_unicode_is_decoded_with_and_without_its_mark(tmp_path, language: str, encoding) -> None:
    text = "\n".join(_sentences(TEXTS[language][0]))
    file = _file(tmp_path, text.encode(encoding))
    assert read_text(file) == text
    assert inspect_file(file).encoding == encoding


def _mixed(language: str, share: float, seed: int) -> str:
    """English with some words of another language."""
    said = TEXTS[language][0]
    words = (
        said.split() if " " in said else [said[at : at + 3] for at in range(0, len(said) - 3, 3)]
    )
    english = "the river runs east and the man with his boat does not know why it does so".split()
    draw = random.Random(seed)
    return " ".join(draw.choice(words if draw.random() < share else english) for _ in range(800))


@pytest.mark.parametrize("share", [0.005, 0.02, 0.1, 0.3])
@pytest.mark.parametrize(("language", "encoding"), CASES)
def test_words_in_english_are_never_decoded_wrongly(tmp_path, language, encoding, share) -> None:
    content = _mixed(language, share, seed=5).encode(encoding, "ignore")
    try:
        text = read_text(_file(tmp_path, content))
    except Unreadable as error:
        assert "iconv -f" in error.why
    else:
        assert text == content.decode(encoding)


@pytest.mark.parametrize("word", ["don’t", "“so”", "wait…", "now – then"])
def test_english_with_the_quotes_of_windows_is_decoded(tmp_path, word: str) -> None:
    text = f"She said {word} and left. " * 3
    assert read_text(_file(tmp_path, text.encode("cp1252"))) == text


def test_a_legacy_passage_far_behind_ascii_is_decoded(tmp_path) -> None:
    start = "Plain words, and a line.\n" * 100_000
    text = start + TEXTS["simplified Chinese"][0]
    file = _file(tmp_path, text.encode("gb18030"))
    assert read_text(file) == text and inspect_file(file).encoding == "gb18030"


def test_characters_are_never_cut_where_pieces_end(tmp_path) -> None:
    text = "a" + TEXTS["simplified Chinese"][0] * 9000
    for encoding in ("utf-8", "gb18030", "utf-16"):
        assert read_text(_file(tmp_path, text.encode(encoding))) == text


def test_the_encoding_that_a_page_names_is_taken(tmp_path) -> None:
    page = '<html><head><meta charset="gb2312"></head><body><p>春</p></body></html>'
    assert read_text(_file(tmp_path, page.encode("gbk"), "a.html")).strip() == "春"


@pytest.mark.parametrize("content", ["café", "naïve piñata"])
def test_too_few_bytes_to_tell_by_are_refused_with_a_way_out(tmp_path, content: str) -> None:
    with pytest.raises(Unreadable, match="iconv -f"):
        read_text(_file(tmp_path, content.encode("latin-1")))


def test_utf8_with_a_wrong_byte_is_not_taken_for_another_encoding(tmp_path) -> None:
    content = "Ein schöner Tag für große Bären. ".encode() * 50
    with pytest.raises(Unreadable, match=r"not utf-8 \(byte 700"):
        read_text(_file(tmp_path, content[:700] + b"\xe9" + content[700:]))


def test_lines_of_json_with_wrong_bytes_are_the_only_ones_lost(tmp_path) -> None:
    lines = [b'{"text": "one"}', b'{"text": "caf\xe9"}', '{"text": "drei: ß"}'.encode()]
    rows = list(read_rows_and_faults(_file(tmp_path, b"\n".join(lines), "a.jsonl")))
    assert [row.line for row in rows] == [1, 2, 3]
    assert isinstance(rows[1], BadRow) and rows[1].why.startswith("bytes that are not UTF-8")


@pytest.mark.parametrize("encoding", ["gb18030", "utf-16", "utf-8-sig", "utf-16-le"])
def test_json_lines_in_other_encodings_keep_their_lines(tmp_path, encoding: str) -> None:
    texts = _sentences(TEXTS["simplified Chinese"][0])
    lines = [json.dumps({"text": text}, ensure_ascii=False) for text in texts]
    file = _file(tmp_path, "\r\n".join(lines).encode(encoding), "a.jsonl")
    assert [(row.value["text"], row.line) for row in read_rows(file)] == [
        (text, number) for number, text in enumerate(texts, 1)
    ]


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.json", "a.csv", "a.html", "a"])
def test_binary_is_refused_as_binary(tmp_path, name: str) -> None:
    for content in (random.Random(7).randbytes(5000), b"\x89PNG\r\n\x1a\n" + bytes(90)):
        with pytest.raises(Unreadable, match="binary"):
            read_text(_file(tmp_path, content, name))


@settings(max_examples=200, deadline=None)
@given(content=st.binary(max_size=400))
def test_any_bytes_end_in_their_text_or_a_refusal(tmp_path_factory, content: bytes) -> None:
    file = _file(tmp_path_factory.mktemp("any"), content)
    try:
        text = read_text(file)
    except Unreadable:
        return
    except Exception as error:
        assert "holds rows" in str(error) or "broken" in str(error) or "cut" in str(error)
        return
    assert "\ufffd" not in text or "\ufffd".encode() in content


def test_macintosh_cyrillic_is_refused_and_never_taken_for_another(tmp_path) -> None:
    text = "Сегодня хорошая погода, и мы идём гулять в большой парк у реки. Потом будет чай.\n"
    path = tmp_path / "a.txt"
    path.write_bytes((text * 20).encode("mac_cyrillic"))
    with pytest.raises(Unreadable, match="UTF-8"):
        read_text(RawFile(path, "a.txt"))
    path.write_bytes((text * 20).encode("cp1251"))
    assert read_text(RawFile(path, "a.txt")) == text * 20
