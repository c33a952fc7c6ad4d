"""Lines that belong to the page and not to its text: notices, menus, buttons, in two languages."""

from __future__ import annotations

import re
from collections import Counter

from fourstage.data.cleaning.features import Features
from fourstage.data.cleaning.verdict import KEPT, Verdict

# Longer lines are text, whatever they hold.
LONGEST = 240
_SITE = (
    r"(?:Facebook|Twitter|X|LinkedIn|Pinterest|WhatsApp|Reddit|Telegram|Instagram|Tumblr|Email"
    r"|Google\+?)"
)
_BUTTON = (
    r"(?:log ?in|log ?out|sign ?(?:in|up|out)|register|subscribe(?: now)?|read more|learn more"
    r"|continue reading|see more|show more|load more|view all|back to top|main menu|menu"
    r"|skip to (?:main )?content|leave a (?:comment|reply)|post (?:a )?comment|cancel reply"
    r"|add to (?:cart|wishlist)|buy now|click here(?: (?:to|for) .{0,40})?|advertisements?"
    r"|sponsored"
    r"|loading|print(?: this)?(?: page)?|next(?: (?:post|page|article))?|older posts|newer posts"
    r"|prev(?:ious)?(?: (?:post|page|article))?|toggle navigation|search for:?|home|about(?: us)?"
    r"|contact(?: us)?|faqs?|sitemap|terms(?: (?:of|and|&) (?:use|service|conditions))?"
    r"|privacy(?: policy)?|my account|help|follow us(?: on .{0,30})?|download(?: now| pdf)?)"
)
_BUTTON_CHINESE = (
    r"(?:登[录錄入]|注册|註冊|退出|忘记密码|忘記密碼|免费注册|会员中心|會員中心|我的账户|购物车|購物車"
    r"|加入收藏|收藏本站|设为首页|設為首頁|返回首[页頁]|返回[顶頂]部|返回列表|回到[顶頂]部|首[页頁]"
    r"|联系我们|聯[系絡]我們|关于我们|關於我們|网站地图|網站地圖|友情链接|友情鏈接|帮助中心|意见反馈"
    r"|广告服务|广告|廣告|加载中|加載中|阅读全文|閱讀全文|阅读原文|查看更多|查看全部|展开全文|展開全文"
    r"|更多|我要评论|发表评论|發表評論|打印本页|打印|关闭窗口|关闭|收藏|点赞|举报|回复|隐私政策|隱私政策"
    r"|使用条款|用户协议|免责声明|手机版|电脑版|简体中文|繁體中文)"
)
_GAP = r"[\s|｜/·•>»›、-]*"
_END = r"(?:[\s…:：»›>|]|\.\.\.)*"
_ITEM = r"[^|»›•·\d。，,.!?！？]"
# Kinds that are told by how a line begins or by all of it.
_WHOLE = {
    "share": r"(?:(?:share(?: this)?(?: (?:on|via|with))?|tweet|pin it|like this"
    rf"|follow(?: us)?(?: on)?)[:\s]*(?:{_SITE}[\s,|/]*)*{_END}"
    rf"|(?:{_SITE}[\s,|/]+){{2,}}(?:{_SITE})?{_END}|分享[到至].{{0,40}}"
    r"|.{0,20}(?:扫一扫|掃一掃|扫码关注|扫描二维码|长按.{0,6}二维码|关注.{0,12}公众号).{0,30})$",
    "menu": rf"(?:(?:{_BUTTON}{_GAP})+{_END}|(?:{_BUTTON_CHINESE}{_GAP})+{_END}"
    rf"|(?![|\d])(?:{_ITEM}{{1,25}}[|»›•·]){{3,}}{_ITEM}{{0,25}}"
    r"|(?:home|首[页頁]) ?[>»›→/].{1,100}"
    r"|(?:[您你])?(?:现在|現在|当前|當前|所在)的?(?:所在)?位置[:：].{0,80})$",
    "pages": r"(?:[<«‹←]* ?[上下]一[篇页頁章节節条條個个张張](?:[:：]|[\s|/]+下一.).{0,80}"
    r"|[上下]一[篇页頁章节節条條张張]|[<«‹←] (?:previous|older|back).{0,80})$",
    "click": r"(?:>+ ?)?(?:请|請)?(?:点击|點擊|单击|猛戳)(?:此处|这里|這裡|下方|上方|下面|右上角"
    r"|左下角|查看|阅读|閱讀|下载|进入|关注|链接|“).{0,40}$",
}
# Kinds that are told by what a line holds, and words without which it is of none of them.
_SIGNED = {
    "cookies": r".*(?:\b(?:we|sites?|page|and) uses? cookies\b"
    r"|\b(?:use|accept)(?:ing)? (?:of |all |our )?cookies\b"
    r"|\bcookie (?:policy|settings|preferences|notice|consent)|本[网網]?站使用.{0,8}cookie)",
    "javascript": r".*(?:\b(?:enable|requires?|turn on|without|activate|supports?)"
    r" (?:your )?javascript\b"
    r"|\bjavascript (?:(?:is|must be|has been|needs to be|seems to be)"
    r" (?:currently )?(?:disabled|enabled|required|turned|not)|enabled)\b"
    r"|(?:启用|开启|支持) ?javascript)",
    "lorem_ipsum": r".*\blorem ipsum dolor\b",
    "copyright": r"(?:.{0,40}(?:©|\(c\) ?(?:19|20)\d\d"
    r"|copyright(?: ©| \(c\)|:)? ?(?:19|20)\d\d).{0,100}|.{0,100}all rights reserved.{0,60}"
    r"|.{0,60}(?:版权所有|版權所有|著作权归|版权归).{0,60})$",
    "filing": r".{0,60}(?:ICP ?[备備证證] ?(?:案号：?)?\d{5,}|公网安备 ?\d{6,}"
    r"|增值电信业务经营许可证|网络文化经营许可证).{0,60}$",
    "reprint": r"(?:.{0,60}(?:转载请注明|轉載請註明|转载请联系"
    r"|未经.{0,16}(?:不得|禁止|谢绝).{0,6}转载|未經.{0,16}轉載).{0,80}"
    r"|[（(【]?(?:责任编辑|責任編輯|本文来源|文章来源|本文链接|本文地址)[:：].{0,80})$",
}
_SIGNS = (
    *(
        "cookie",
        "javascript",
        "lorem",
        "©",
        "(c)",
        "copyright",
        "reserved",
        "版权",
        "版權",
        "著作权",
    ),
    *("icp", "公网安备", "许可证", "转载", "轉載", "编辑", "編輯", "本文", "来源"),
)


def _one_of(rules: dict[str, str]) -> re.Pattern[str]:
    # The group that matched names the kind.
    return re.compile("|".join(f"(?P<{k}>{rule})" for k, rule in rules.items()), re.IGNORECASE)


_IS_WHOLE, _IS_SIGNED = _one_of(_WHOLE), _one_of(_SIGNED)


def boilerplate(features: Features) -> Verdict:
    """Leaves out lines of notices, menus, buttons and paging, in English and Chinese.

    Kinds: cookies, javascript, lorem_ipsum, copyright, filing (Chinese registration numbers),
    share, menu, pages, click, reprint. A text of nothing else is dropped.
    """
    kept: list[str] = []
    edits: Counter[str] = Counter()
    has_signs = _has_signs(features.text)
    for line in features.lines:
        kind = kind_of(line, has_signs)
        if kind:
            edits[kind] += 1
        else:
            kept.append(line)
    if not edits:
        return KEPT
    text = "\n".join(kept).strip()
    if not text:
        return Verdict("nothing_left", f"0 of {len(features.lines)} lines", edits=edits)
    return Verdict(text=text, edits=edits)


def kind_of(line: str, has_signs: bool = True) -> str:
    """What kind of boilerplate a line is; empty where it is none.

    `has_signs`: the text that it is of holds a word of those that some kinds are told by.
    """
    if len(line) > LONGEST:
        return ""
    line = line.strip()
    found = _IS_WHOLE.match(line)
    if found is None and has_signs and _has_signs(line):
        found = _IS_SIGNED.match(line)
    return (found.lastgroup or "") if found else ""


def _has_signs(text: str) -> bool:
    lower = text.lower()
    return any(sign in lower for sign in _SIGNS)
