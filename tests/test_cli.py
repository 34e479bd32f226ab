"""The command raypool, as a user meets it: real processes, signals and exit codes."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path

import httpx
import pyarrow as pa
import pyarrow.parquet as parquet
import pytest

from deployments import cli, commands
from tests.checkpoints import HIDDEN, MINILM
from tests.checkpoints.images import WITH_IMAGES
from tests.texts import words

ROOT = Path(__file__).parents[1]
RAYPOOL = str(Path(sys.executable).parent / "raypool")


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return int(taken.getsockname()[1])


@pytest.fixture
def environment() -> dict[str, str]:
    """A user's, but every port is on 127.0.0.1 and free, whatever else runs on this machine."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    return kept | {
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        "RAY_SERVE_HAPROXY_STATS_PORT": str(free_port()),
        "RAY_SERVE_HAPROXY_METRICS_PORT": str(free_port()),
    }


@pytest.fixture
def raypool(environment: dict[str, str], tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    def run(*arguments: object) -> subprocess.CompletedProcess[str]:
        command = [RAYPOOL, *map(str, arguments)]
        return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=180)

    return run


Run = Callable[..., subprocess.CompletedProcess[str]]


def last_word(done: subprocess.CompletedProcess[str]) -> str:
    """The last line of stderr, once it is seen that a user got no traceback."""
    assert "Traceback" not in done.stdout + done.stderr
    return done.stderr.strip().splitlines()[-1]


def descendants(pid: int) -> set[int]:
    """Every process below one, as long as none has left its parent."""
    found: set[int] = set()
    for task in Path(f"/proc/{pid}/task").iterdir():
        for child in map(int, (task / "children").read_text().split()):
            found |= {child} | descendants(child)
    return found


def test_serve_greets_answers_and_leaves_nothing_behind(environment: dict[str, str]) -> None:
    port = free_port()
    command = [RAYPOOL, "serve", MINILM, "--served-model-name", "mini", "--dtype", "float32", "--port", str(port)]
    with subprocess.Popen(
        [*command, "--api-key", "sesame"],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            assert process.stdout is not None
            assert process.stderr is not None
            printed = iter(process.stdout.readline, "")
            curl = next(line for line in printed if line.startswith("curl "))
            answer = next(printed)
            assert "sesame" not in curl + answer
            assert re.search(r'"embedding": \[-?0\.\d{4}, .* 384 numbers\]', answer)
            for line in iter(process.stderr.readline, ""):
                if "ready in" in line:
                    assert f"http://127.0.0.1:{port};" in line
                    break
            asked = subprocess.run(["bash", "-c", curl], env=os.environ | {"API_KEY": "sesame"}, capture_output=True)
            assert len(json.loads(asked.stdout)["data"][0]["embedding"]) == 384
            example = [sys.executable, "examples/client.py", f"http://127.0.0.1:{port}"]
            keyed = environment | {"OPENAI_API_KEY": "sesame"}
            shown = subprocess.run(example, cwd=ROOT, env=keyed, capture_output=True, text=True, timeout=60)
            assert re.fullmatch(r"(mini [01]: 384 numbers, .*\n){2}", shown.stdout), shown.stderr
            with httpx.Client(base_url=f"http://127.0.0.1:{port}", trust_env=False) as client:
                assert client.get("/v1/models").status_code == 401
            started = descendants(process.pid)
            assert len(started) > 5  # Ray's daemons, Serve's actors, HAProxy, the replicas
            os.killpg(process.pid, signal.SIGINT)  # Ctrl-C: the terminal sends it to all of its process group
            assert process.wait(60) == 0
            assert process.stderr.read() == "raypool: stopping\n"
        finally:
            process.terminate()
    assert [pid for pid in started if Path(f"/proc/{pid}").exists()] == []
    with socket.create_server(("127.0.0.1", port)):
        pass


def test_serve_ends_with_the_reason_why_a_replica_refuses(
    raypool: Run, broken_checkpoint: Callable[[str], Path]
) -> None:
    done = raypool("serve", broken_checkpoint("misshapen tensor"), "--port", free_port())
    assert done.returncode == 1
    assert re.fullmatch("raypool: tensor '.*' has shape .*; the configuration asks for .*", last_word(done))


def test_serve_refuses_more_than_the_machine_has_instead_of_waiting_for_it(raypool: Run) -> None:
    done = raypool("serve", MINILM, "--device", "cuda", "--port", free_port())
    assert done.returncode == 2
    assert last_word(done).startswith("raypool: the models need 1 GPUs, but this machine has ")


def test_serve_refuses_a_port_in_use_before_it_starts_anything(raypool: Run) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = raypool("serve", MINILM, "--port", port)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(f"raypool: port {port} on 127.0.0.1 is in use")


def test_serve_refuses_weights_that_are_cut_short(raypool: Run, broken_checkpoint: Callable[[str], Path]) -> None:
    done = raypool("serve", broken_checkpoint("truncated weights"), "--port", free_port())
    assert done.returncode == 1
    assert re.fullmatch(r"raypool: model\.safetensors is cut short: it has \d+ of \d+ bytes\n", done.stderr)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("serve", "nothing.yaml"), "config file 'nothing.yaml' does not exist"),
        (("serve", "/no/such/model", "--port", "0"), "http_options.port is 0; allowed are 1 to 65535"),
        (("serve", "/no/such/model", "--port", free_port()), "model source '/no/such/model' does not exist"),
        (("serve", MINILM, "--override-pooler-config", "{"), "--override-pooler-config is not JSON"),
        (("serve", MINILM, "--limit-mm-per-prompt", '{"video": 1}'), "limit_mm_per_prompt"),
        (("serve", MINILM, "--allowed-media-domains", "http://a.b"), "allowed_domains has 'http://a.b'"),
        (("serve", MINILM, "--hf-overrides", "[]"), "--hf-overrides is not a JSON object"),
        (
            ("serve", ROOT / "configs" / "demo.yaml", "--dtype", "float32", "--replicas", "2"),
            "--dtype, --replicas would go unheard beside a config file",
        ),
        (("inspect", "/no/such/model"), "model source '/no/such/model' does not exist"),
        (("embed", "in.parquet", "--model", MINILM, "--output", "out"), "input 'in.parquet' does not exist"),
        (("embed", "in.parquet", "--model", MINILM, "--output", "out", "--batch-size", "0"), "batch_size: "),
        (("serve", MINILM, "--tensor-parallel-size", "5"), "num_attention_heads 12 and intermediate_size 1536 cannot"),
        (("serve", MINILM, "--device", "cpu", "--quantization", "fp8"), "fp8 is for GPUs; on a CPU there is int8"),
        (
            (
                "embed",
                ROOT / "README.md",
                "--model",
                MINILM,
                "--output",
                "out",
                "--device",
                "cpu",
                "--quantization",
                "fp8",
            ),
            "fp8 is for GPUs; on a CPU there is int8",
        ),
        (("score", ROOT / "README.md", "--model", MINILM, "--output", "out"), "name its format with --input-format"),
        (("classify", ROOT / "README.md", "--model", MINILM, "--output", "out", "--input-format", "jsonl"), "no JSON"),
        (("reward", ROOT / "README.md", "--model", MINILM, "--output", "out", "--input-format", "text"), "'reward'"),
    ],
)
def test_a_mistake_is_one_sentence_and_exit_code_2(raypool: Run, arguments: tuple[object, ...], said: str) -> None:
    done = raypool(*arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert re.fullmatch(f"raypool: .*{re.escape(said)}.*\n", done.stderr)


def test_inspect_says_what_a_model_is(raypool: Run) -> None:
    done = raypool("inspect", MINILM)
    assert done.returncode == 0
    assert re.search(r"^architecture\s+BertModel \(bert\)$", done.stdout, re.MULTILINE)
    assert re.search(r"^longest input\s+256 tokens$", done.stdout, re.MULTILINE)
    assert re.search(r"^images\s+none$", done.stdout, re.MULTILINE)
    assert re.search(r"^tensor parallel +over 2, 3, 4, 6, 12 ranks$", done.stdout, re.MULTILINE)
    card = json.loads(raypool("inspect", MINILM, "--json", "--max-model-len", "100").stdout)
    assert (card["dim"], card["max_model_len"], card["poolers"]["embed"]["pooling_type"]) == (384, 100, "MEAN")


def test_the_search_example_ranks_the_right_text_first() -> None:
    done = subprocess.run([sys.executable, "examples/search.py"], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert "A Ray cluster schedules" in done.stdout.splitlines()[0], done.stderr


def test_the_image_search_finds_the_same_picture_again(tmp_path: Path) -> None:
    """With random weights a text finds anything; an image finds itself, drawn anew."""
    model = str(WITH_IMAGES["clip"].write(tmp_path))
    command = [sys.executable, "examples/image_search.py", model]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    by_text, by_image = done.stdout.split("nearest to ")[1:]
    assert by_text.splitlines()[0] == "the text 'a photo of a red circle':", done.stderr
    assert re.fullmatch(r" 1\.000  a blue triangle", by_image.splitlines()[1]), done.stdout


def test_embed_turns_a_file_into_a_directory(raypool: Run, checkpoint: Callable[[str], Path], tmp_path: Path) -> None:
    parquet.write_table(pa.table({"body": [words(3), None, words(9)], "id": [1, 2, 3]}), tmp_path / "in.parquet")
    model = checkpoint("bert")
    done = raypool(
        "embed", "in.parquet", "--model", model, "--column", "body", "--output", "out", "--output-column", "v"
    )
    assert done.returncode == 0, done.stderr
    assert re.fullmatch(
        r"3 rows, 1 without an answer \(see the error column\): .*/out \(3 rows in .* s, .* rows/s\)\n", done.stdout
    )
    written = parquet.read_table(tmp_path / "out")
    assert written.column("id").to_pylist() == [1, 2, 3]
    assert [None if v is None else len(v) for v in written.column("v").to_pylist()] == [HIDDEN, None, HIDDEN]
    again = raypool("embed", "in.parquet", "--model", model, "--column", "body", "--output", "out")
    assert again.returncode == 2
    assert "is not empty; it belongs to another job, of which output_column was 'v', not None" in again.stderr
    same = raypool(
        "embed", "in.parquet", "--model", model, "--column", "body", "--output", "out", "--output-column", "v"
    )
    assert (same.returncode, same.stderr) == (0, "")
    assert "3 rows, 1 without an answer (see the error column): " in same.stdout
    assert "(done by an earlier run: 3 rows; by this one: none)" in same.stdout


@pytest.mark.parametrize(("run", "said"), [("pool_files", "the same command goes on"), ("inspect", "")])
def test_a_job_that_is_broken_off_says_how_it_goes_on(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], run: str, said: str
) -> None:
    def broken_off(_: Namespace) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(commands, run, broken_off)
    assert cli._run(Namespace(run=broken_off)) == 130
    shown = capsys.readouterr().err
    assert said in shown
    assert bool(shown) == bool(said)
