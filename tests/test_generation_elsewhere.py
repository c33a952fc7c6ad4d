"""Other engines: what they are asked, what they have to answer, and whose weights they draw from.

vLLM and Ray are stood in for by modules with the calls that are made of them; a server by one on
the loopback that draws with the engine here.
"""

from __future__ import annotations

import json
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from evaluation_support import model, tokenizer
from fourstage.errors import InputError, MachineError
from fourstage.generation.actors import RayActors
from fourstage.generation.elsewhere import completion
from fourstage.generation.engine import Completion, Engine
from fourstage.generation.sampling import Sampling
from fourstage.generation.servers import OPENAI, SGLANG, Server
from fourstage.generation.vllm_engine import Vllm
from fourstage.interchange import load_model
from fourstage.interchange.weights import import_weights
from fourstage.planning import DataFacts, model_config, resolve
from fourstage.planning.steps import largest_fit, planned_share
from fourstage.posting import Poster
from fourstage.recipe import RL
from fourstage.recipe.rollouts import EngineSection
from fourstage.stages.engines import WeightFolders, engine_of
from fourstage.stages.rollouts import RolloutSource
from pipeline_support import tiny
from test_stages_rollouts import TASKS, WORDS, players, section

PROMPTS = [tokenizer().chat_prompt(task.prompt) for task in TASKS[:5]]
SEEDS = [11, 12, 13, 14, 15]
SAMPLING = Sampling(temperature=0.9, max_new_tokens=6, stop_ids=tokenizer().stop_ids)


class Service:
    """A server that draws with the engine here, in either dialect; loads weights that it is told.

    Attributes:
        spoil: changes an answer before it is sent.
    """

    def __init__(self, spoil=lambda answer: answer):
        self.model, self.spoil = model(9), spoil
        self.requests: list[dict[str, Any]] = []
        self.loaded: list[str] = []
        owner = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                said = json.dumps(owner.spoil(owner.answer(self.path, body))).encode()
                self.send_response(200)
                self.end_headers()
                self.wfile.write(said)

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()

    def answer(self, path: str, body: dict[str, Any]) -> Any:
        if path == "/update":
            self.loaded.append(body["model_path"])
            self.model = load_model(Path(body["model_path"])).eval()
            return {"success": True}
        self.requests.append(body)
        told = body.get("sampling_params", body)
        sampling = Sampling(
            temperature=told["temperature"],
            max_new_tokens=told.get("max_tokens", told.get("max_new_tokens")),
            stop_ids=tuple(told["stop_token_ids"]),
        )
        prompt = body.get("prompt", body.get("input_ids"))
        (done,) = Engine(self.model).generate([prompt], sampling, [body.get("seed", 3)])
        logprobs = done.logprobs.tolist()
        if path == "/generate":
            pairs = [[p, t, None] for p, t in zip(logprobs, done.tokens, strict=True)]
            return {"output_ids": done.tokens, "meta_info": {"output_token_logprobs": pairs}}
        names = [f"token_id:{token}" for token in done.tokens]
        told_of = {"tokens": names, "token_logprobs": logprobs}
        return {"choices": [{"token_ids": done.tokens, "logprobs": told_of}]}

    def __enter__(self) -> Service:
        return self

    def __exit__(self, *error: object) -> None:
        self.server.shutdown()
        self.server.server_close()


def server(service: Service, dialect=OPENAI, **more: Any) -> Server:
    path = {"openai": "/v1/completions", "sglang": "/generate"}[dialect.name]
    address = Poster(service.url + path, seconds=20, retries=0)
    return Server(dialect, address, workers=3, **more)


def expected(made) -> list[Any]:
    return Engine(made).generate(PROMPTS, SAMPLING, SEEDS)


def same(found, wanted) -> None:
    for one, other in zip(found, wanted, strict=True):
        assert (one.tokens, one.finish) == (other.tokens, other.finish)
        np.testing.assert_allclose(one.logprobs, other.logprobs, atol=1e-5)


def test_a_server_answers_as_the_engine_here_does():
    said: list[str] = []
    with Service() as service:
        made = server(service, model="mine")
        made.start(said.append)
        same(made.generate(PROMPTS, SAMPLING, SEEDS), expected(service.model))
    assert "posts prompts to http://127.0.0.1" in said[0]
    body = next(each for each in service.requests if each["seed"] == 13)
    assert (body["model"], body["prompt"], body["max_tokens"]) == ("mine", PROMPTS[2], 6)
    # Else the generation config of the served model would truncate the distribution.
    assert (body["top_p"], body["top_k"], body["repetition_penalty"]) == (1.0, -1, 1.0)


def test_an_earlier_vllm_names_tokens_by_their_ids():
    def without_ids(answer):
        answer["choices"][0].pop("token_ids", None)
        return answer

    with Service(without_ids) as service:
        same(server(service).generate(PROMPTS, SAMPLING, SEEDS), expected(service.model))


def test_sglang_answers_pairs():
    with Service() as service:
        found = server(service, SGLANG).generate(PROMPTS, SAMPLING, SEEDS)
        wanted = Engine(service.model).generate(PROMPTS, SAMPLING, [3] * 5)
        same(found, wanted)
        assert service.requests[0]["return_logprob"] is True


def test_weights_reach_a_server_by_a_folder(tmp_path):
    with Service() as service:
        write = WeightFolders(tmp_path / "weights", tokenizer())
        made = server(service, write=write, update=Poster(f"{service.url}/update", retries=0))
        for seed in (1, 2, 3):
            made.take(model(seed))
            same(made.generate(PROMPTS, SAMPLING, SEEDS), expected(model(seed)))
        assert len(set(service.loaded)) == 3
    assert len(list((tmp_path / "weights").iterdir())) == 2, "folders do not pile up"


def _without_logprobs(answer):
    del answer["choices"][0]["logprobs"]["token_logprobs"]
    return answer


def _empty(answer):
    answer["choices"][0]["token_ids"] = []
    return answer


def _infinite(answer):
    answer["choices"][0]["logprobs"]["token_logprobs"][0] = float("nan")
    return answer


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (_without_logprobs, "has no token ids with log-probabilities"),
        (_empty, "0 tokens with 1 log-probabilities"),
        (_infinite, "nan as a log-probability"),
        (lambda answer: [], "has no token ids with log-probabilities"),
    ],
)
def test_a_server_that_answers_otherwise_is_one_line_before_training(spoil, words):
    with Service(spoil) as service, pytest.raises(InputError) as error:
        server(service).start(lambda line: None)
    assert words in str(error.value)
    assert "\n" not in str(error.value)


def test_a_server_that_is_gone_ends_the_run_in_words():
    with Service() as service:
        made = server(service)
    with pytest.raises(MachineError, match="run the same command again to go on"):
        made.generate(PROMPTS, SAMPLING, SEEDS)
    with pytest.raises(InputError, match="does not answer a prompt as it should"):
        made.start(lambda line: None)


def test_an_update_that_is_refused_is_told(tmp_path):
    with Service(lambda answer: {"success": False}) as service:
        write = WeightFolders(tmp_path / "weights", tokenizer())
        made = server(service, write=write, update=Poster(f"{service.url}/update", retries=0))
        with pytest.raises(MachineError, match="did not load the weights"):
            made.take(model(1))


def test_an_answer_ends_at_its_first_stop_token():
    stop = tokenizer().end_of_turn
    found = completion([5, stop, 7], [-1.0, -2.0, -3.0], SAMPLING, "it")
    assert (found.tokens, found.finish, found.logprobs.tolist()) == ([5, stop], "stop", [-1, -2])
    assert completion([5] * 6, [-1.0] * 6, SAMPLING, "it").finish == "length"
    with pytest.raises(MachineError, match="without a stop token"):
        completion([5, 6], [-1.0, -1.0], SAMPLING, "it")
    with pytest.raises(MachineError, match="7 tokens, and 6 were asked for"):
        completion([5] * 7, [-1.0] * 7, SAMPLING, "it")


def stand_in_for_ray(monkeypatch) -> list[str]:
    """Actors that are plain objects; their calls are done at once."""
    ended: list[str] = []

    class Remote:
        def __init__(self, kind, *given):
            self._inner = kind(*given)

        def __getattr__(self, name):
            inner = getattr(self._inner, name)
            return SimpleNamespace(remote=lambda *given: inner(*given))

    def remote(**options):
        return lambda kind: SimpleNamespace(remote=lambda *given: Remote(kind, *given))

    ray: Any = ModuleType("ray")
    ray.is_initialized, ray.init = (lambda: False), (lambda **options: None)
    ray.remote, ray.put, ray.get = remote, (lambda value: value), list
    ray.kill = lambda actor: ended.append("killed")
    ray.exceptions = SimpleNamespace(RayError=RuntimeError)
    monkeypatch.setitem(sys.modules, "ray", ray)
    return ended


def test_ray_actors_draw_what_one_engine_draws(monkeypatch):
    ended = stand_in_for_ray(monkeypatch)
    actors = RayActors(3)
    actors.start(lambda line: None)
    for seed in (1, 2):
        actors.take(model(seed))
        same(actors.generate(PROMPTS, SAMPLING, SEEDS), expected(model(seed)))
    assert actors.generate(PROMPTS[:1], SAMPLING, [1])[0].tokens
    actors.close()
    assert len(ended) == 3


class _Llm:
    """vLLM's calls, over the engine here."""

    def __init__(self, **options: Any):
        self.options = options
        self.model = load_model(Path(options["model"])).eval()
        self.caches = 0
        runner = SimpleNamespace(model=SimpleNamespace(load_weights=self._load))
        worker = SimpleNamespace(model_runner=runner)
        self.llm_engine = SimpleNamespace(model_executor=SimpleNamespace(driver_worker=worker))

    def _load(self, tensors):
        import_weights(self.model, dict(tensors), Path("weights"))
        self.model.eval()

    def reset_prefix_cache(self):
        self.caches += 1

    def generate(self, rows, parameters, use_tqdm):
        found = []
        for row, told in zip(rows, parameters, strict=True):
            sampling = Sampling(
                temperature=told.temperature,
                max_new_tokens=told.max_tokens,
                stop_ids=tuple(told.stop_token_ids),
            )
            (done,) = Engine(self.model).generate([row["prompt_token_ids"]], sampling, [told.seed])
            held = [
                {token: SimpleNamespace(logprob=float(p))}
                for token, p in zip(done.tokens, done.logprobs, strict=True)
            ]
            output = SimpleNamespace(token_ids=done.tokens, logprobs=held)
            found.append(SimpleNamespace(outputs=[output]))
        return found


def test_vllm_is_given_the_weights_tensor_by_tensor(monkeypatch, tmp_path):
    vllm: Any = ModuleType("vllm")
    vllm.LLM, vllm.SamplingParams = _Llm, SimpleNamespace
    monkeypatch.setitem(sys.modules, "vllm", vllm)
    monkeypatch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    made = Vllm(WeightFolders(tmp_path / "weights", tokenizer()), 0.5)
    made.start(lambda line: None)
    for seed in (1, 2):
        made.take(model(seed))
        same(made.generate(PROMPTS, SAMPLING, SEEDS), expected(model(seed)))
    assert made._llm.caches == 1
    assert made._llm.options["logprobs_mode"] == "processed_logprobs"
    assert len(list((tmp_path / "weights").iterdir())) == 1


def test_a_cluster_that_is_not_there_is_one_line(monkeypatch):
    stand_in_for_ray(monkeypatch)

    def init(**options: Any) -> None:
        raise ConnectionError("could not connect\nfor long")

    monkeypatch.setattr(sys.modules["ray"], "init", init)
    with pytest.raises(
        InputError, match=r"no cluster 10\.0\.0\.1:9 \(for long\): write rl"
    ) as error:
        RayActors(1, address="10.0.0.1:9").start(lambda line: None)
    assert "\n" not in str(error.value)


def test_a_vllm_that_does_not_start_is_one_line(monkeypatch, tmp_path):
    def without_memory(**options: Any) -> None:
        raise ValueError("\nNo available memory for the cache blocks.")

    vllm: Any = ModuleType("vllm")
    vllm.LLM = without_memory
    monkeypatch.setitem(sys.modules, "vllm", vllm)
    monkeypatch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    made = Vllm(WeightFolders(tmp_path / "weights", tokenizer()), 0.1)
    with pytest.raises(MachineError, match=r"memory=0\.1 \(No available memory") as error:
        made.take(model(1))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("token", "words"), [(None, "no such"), ("a\nb", "a line break")])
def test_a_token_that_cannot_be_sent_is_refused_before_anything_is(monkeypatch, token, words):
    monkeypatch.delenv("TOKEN", raising=False)
    if token is not None:
        monkeypatch.setenv("TOKEN", token)
    with Service() as service:
        with pytest.raises(InputError, match=rf"rl\.engine\.token_env=TOKEN: .*{words}"):
            server(service, token_env="TOKEN").start(lambda line: None)
        assert not service.requests


@pytest.mark.parametrize("kind", ["vllm", "ray"])
def test_a_library_that_is_missing_is_one_line(monkeypatch, tmp_path, kind):
    monkeypatch.setitem(sys.modules, kind, None)
    made = engine_of(EngineSection(kind=kind), WeightFolders(tmp_path, tokenizer()))
    assert made is not None
    with pytest.raises(InputError, match=rf"pip install 'fourstage\[{kind}\]'"):
        made.start(lambda line: None)


def test_rollouts_from_a_server_are_those_of_the_policy(tmp_path):
    told = {"algorithm": "grpo", "group": 4, "rewards": WORDS, "kl_coefficient": 0.0}
    with Service() as service:
        url = {"url": f"{service.url}/v1/completions", "update": f"{service.url}/update"}
        more = section(**told, engine={"kind": "openai", **url})
        elsewhere = engine_of(more.engine, WeightFolders(tmp_path / "weights", tokenizer()))
        given = players(False)
        made = RolloutSource(given, tokenizer(), TASKS, more, seed=0, elsewhere=elsewhere)
        made.batch(0)
        with torch.no_grad():
            given.trained.policy.lm_head.weight.mul_(1.2)
        made.batch(4)
        batch = made.rollouts
        assert batch is not None
        trained = batch.streams["loss_weights"] != 0
        gap = (batch.streams["rollout_logprobs"] - batch.streams["old_logprobs"])[trained]
        assert float(gap.abs().max()) < 1e-4, "the second iteration has the second weights"
        assert len(service.loaded) == 2
        made.close()


def test_ids_of_another_vocabulary_end_the_run_in_words():
    class Strange:
        def take(self, model): ...
        def generate(self, prompts, sampling, seeds):
            return [Completion([99_999], np.zeros(1, np.float32), "stop") for _ in prompts]

    told = section(algorithm="grpo", group=4, rewards=WORDS, engine={"kind": "ray"})
    elsewhere: Any = Strange()
    made = RolloutSource(players(False), tokenizer(), TASKS, told, seed=0, elsewhere=elsewhere)
    with pytest.raises(MachineError, match="drew token 99999, outside the policy's vocabulary"):
        made.batch(0)


def test_another_engine_is_corrected_for():
    recipe, _ = resolve(tiny("rl.engine.kind=ray", "rl.engine.actors=2"))
    assert recipe.rl.correction == "tis"
    assert recipe.rl.engine is not None


def test_training_is_planned_with_the_memory_that_vllm_leaves():
    vllm = ("rl.engine.kind=vllm", "rl.engine.memory=0.25")
    plain, beside = (resolve(tiny(*more))[0] for more in ((), vllm))
    assert planned_share(beside, "rl") == plain.compute.memory - 0.25
    assert planned_share(beside, "sft") == planned_share(plain, "rl") == plain.compute.memory
    facts = DataFacts(device="cuda", memory_bytes=2e8)
    config = model_config(plain)
    sizes = [largest_fit(config, each, "rl", facts).micro_batch_tokens for each in (plain, beside)]
    assert 0 < sizes[1] < sizes[0]
    with pytest.raises(InputError, match=r"leaves nothing of compute\.memory=0\.8"):
        tiny("rl.engine.kind=vllm", "rl.engine.memory=0.9")


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"engine": {"kind": "openai"}}, "needs url"),
        ({"engine": {"kind": "openai", "url": "localhost:8000"}}, "write http://HOST:PORT/PATH"),
        ({"engine": {"kind": "openai", "url": "http://a/\u00fc"}}, "write http://HOST:PORT/PATH"),
        ({"engine": {"kind": "openai", "url": "http://a:1/v1"}}, "without update would draw"),
        ({"engine": {"kind": "openai", "url": "http://u:p@a/v1"}}, "holds a password"),
        ({"engine": {"kind": "ray", "memory": 0.5}}, "memory is not of kind=ray"),
        ({"engine": {"kind": "ray"}, "algorithm": "dpo"}, "draws none: leave it out"),
        ({"engine": {"kind": "ray"}, "adapter": {"rank": 4}}, "leave one out"),
        (
            {"engine": {"kind": "ray"}, "behind": 1, "rollout_device": "cuda:1"},
            "rollout_device is of the engine here",
        ),
    ],
)
def test_what_does_not_go_together_is_refused(more, words):
    with pytest.raises(ValueError) as error:
        RL(**more)
    assert words in str(error.value)


def test_best_of_n_can_draw_from_a_server_with_weights_of_its_own():
    engine = {"kind": "sglang", "url": "http://127.0.0.1:1/generate"}
    assert RL(algorithm="bon", engine=engine).engine is not None
