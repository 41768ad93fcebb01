"""Defaults, file, environment and flags; Ollama's spellings; errors that name the fix."""

from __future__ import annotations

import dataclasses
import json
import math
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent import config_values as values
from agent.cli.config_show import show_json, show_text
from agent.cli.main import main
from agent.config import FIELDS, ConfigError, Configuration, Machine, load, resolve
from agent.settings import Settings

MACHINE = Machine(Path("/home/ada"), Path("/work-dir"), "ada's laptop", 6)


def resolved(
    environ: dict[str, str] | None = None,
    flags: dict[str, str] | None = None,
    file_text: str | None = None,
) -> Configuration:
    return resolve(environ=environ or {}, flags=flags or {}, file_text=file_text, machine=MACHINE)


def settings(**environ: str) -> Settings:
    return resolved(environ).settings


def failure(
    environ: dict[str, str] | None = None,
    flags: dict[str, str] | None = None,
    file_text: str | None = None,
) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        resolved(environ, flags, file_text)
    return caught.value


def test_the_table_has_every_setting_once() -> None:
    assert [f.name for f in FIELDS] == [f.name for f in dataclasses.fields(Settings)]


def test_defaults_follow_the_machine() -> None:
    found = resolved().settings
    assert found.home == Path("/home/ada/.llamesh")
    assert found.models == Path("/home/ada/.ollama/models")
    assert found.node_name == "ada-s-laptop"
    assert (found.host, found.port, found.cpu_threads) == ("127.0.0.1", 11434, 6)
    assert {origin.kind for origin in resolved().origins.values()} == {"default"}


def test_later_sources_win_and_the_origin_tells() -> None:
    file_text = "max_queue = 1\nport = 1\n"
    found = resolved(file_text=file_text)
    assert (found.settings.max_queue, found.origins["max_queue"].kind) == (1, "file")
    environ = {"OLLAMA_MAX_QUEUE": "2"}
    found = resolved(environ, file_text=file_text)
    assert (found.settings.max_queue, str(found.origins["max_queue"])) == (
        2,
        "environment OLLAMA_MAX_QUEUE",
    )
    environ["LLAMESH_MAX_QUEUE"] = "3"
    assert resolved(environ, file_text=file_text).settings.max_queue == 3
    found = resolved(environ, {"max_queue": "4"}, file_text)
    assert (found.settings.max_queue, found.origins["max_queue"].kind) == (4, "flag")
    assert found.settings.port == 1


def test_home_moves_the_store_unless_the_store_is_set() -> None:
    assert settings(LLAMESH_HOME="/srv/node").models == Path("/srv/node/models")
    assert resolved(flags={"home": "x"}).settings.models == Path("/work-dir/x/models")
    both = settings(LLAMESH_HOME="/srv/node", OLLAMA_MODELS="~/store")
    assert (both.home, both.models) == (Path("/srv/node"), Path("/home/ada/store"))


def test_paths_in_the_file_start_at_the_home_directory() -> None:
    found = resolved({"LLAMESH_HOME": "/srv/node"}, file_text='models = "store"').settings
    assert found.models == Path("/srv/node/store")


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        ("127.0.0.2", "127.0.0.2", None),
        ("localhost:8080", "localhost", 8080),
        (":8080", "0.0.0.0", 8080),
        ("http://localhost", "localhost", 80),
        ("https://localhost", "localhost", 443),
        ("http://localhost:5000/some/path", "localhost", 5000),
        ("[::1]:7000", "::1", 7000),
        ("[::1]", "::1", None),
        ("::1", "::1", None),
        ("http://[::1]", "::1", 80),
        ("0.0.0.0/", "0.0.0.0", None),
        ("node-7.example", "node-7.example", None),
        ("0.0.0.0:0", "0.0.0.0", 0),
    ],
)
def test_addresses_are_read_as_ollama_reads_them(text: str, host: str, port: int | None) -> None:
    assert values.address(text) == values.Address(host, port)


@pytest.mark.parametrize(
    "text", ["ftp://x", "host:99999", "host:abc", "ho st", "[::1", "[::1]x", "a b:1", "host:-1"]
)
def test_impossible_addresses_are_refused(text: str) -> None:
    with pytest.raises(values.BadValue):
        values.address(text)


def test_host_and_port_variables_combine() -> None:
    found = settings(OLLAMA_HOST="127.0.0.3:1000", OLLAMA_PORT="2000")
    assert (found.host, found.port) == ("127.0.0.3", 2000)
    assert settings(OLLAMA_HOST="127.0.0.3").port == 11434
    assert resolved({"OLLAMA_HOST": "127.0.0.3"}, file_text="port = 9").settings.port == 9


def test_environment_values_lose_spaces_and_quotes() -> None:
    assert settings(OLLAMA_HOST=' "127.0.0.1:5" ').port == 5
    assert settings(OLLAMA_MAX_QUEUE=" '7' ").max_queue == 7
    assert settings(OLLAMA_MAX_QUEUE=' "" ').max_queue == 512


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("5m", 300.0),
        ("1h30m", 5400.0),
        ("1.5s", 1.5),
        ("250ms", 0.25),
        ("3µs", 3e-6),
        ("90", 90.0),
        ("-1", -1.0),
        ("-1m", -60.0),
        ("+2s", 2.0),
        ("0", 0.0),
        (".5s", 0.5),
    ],
)
def test_durations_are_gos(text: str, seconds: float) -> None:
    assert values.duration_s(text) == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["", "m", "5 m", "5x", "--5s", "1h-5m", "nan", "inf", "1e400s"])
def test_what_is_no_duration_is_refused(text: str) -> None:
    with pytest.raises(values.BadValue):
        values.duration_s(text)


@given(st.integers(0, 10**6), st.sampled_from(["ms", "s", "m", "h"]))
def test_a_duration_is_the_sum_of_its_parts(count: int, unit: str) -> None:
    one = values.duration_s(f"{count}{unit}")
    assert values.duration_s(f"{count}{unit}{count}{unit}") == pytest.approx(2 * one)
    assert values.duration_s(f"-{count}{unit}") == -one


@given(st.text(max_size=40))
def test_readers_of_text_answer_or_refuse(text: str) -> None:
    for field in FIELDS:
        for reader in (field.reader, *(reader for _, reader in field.variables)):
            with suppress(values.BadValue):
                reader(text)


def test_keep_alive_and_load_timeout_know_forever() -> None:
    assert settings(OLLAMA_KEEP_ALIVE="-1").keep_alive_s is None
    assert settings(OLLAMA_KEEP_ALIVE="0").keep_alive_s == 0
    assert settings(OLLAMA_KEEP_ALIVE="10m").keep_alive_s == 600
    assert math.isinf(settings(OLLAMA_LOAD_TIMEOUT="0").load_timeout_s)
    assert settings(OLLAMA_LOAD_TIMEOUT="90s").load_timeout_s == 90


def test_every_variable_ollama_users_set_takes_effect() -> None:
    found = settings(
        OLLAMA_MAX_LOADED_MODELS="3",
        OLLAMA_NUM_PARALLEL="4",
        OLLAMA_CONTEXT_LENGTH="8192",
        OLLAMA_KV_CACHE_TYPE="Q8_0",
        OLLAMA_FLASH_ATTENTION="1",
        OLLAMA_GPU_OVERHEAD="1048576",
        OLLAMA_SCHED_SPREAD="true",
        OLLAMA_ORIGINS="https://a.example, https://b.example",
        OLLAMA_NOPRUNE="1",
        OLLAMA_DEBUG="2",
        OLLAMA_GO_TEMPLATE="false",
        OLLAMA_ADMIN_TOKEN="correct-horse",
    )
    assert found.max_loaded_models == 3
    assert found.num_parallel == 4
    assert found.context_length == 8192
    assert found.kv_cache_type == "q8_0"
    assert found.flash_attention == "on"
    assert found.gpu_overhead_bytes == 1048576
    assert found.sched_spread
    assert found.origins == ("https://a.example", "https://b.example")
    assert found.noprune
    assert found.log_level == "debug"
    assert found.go_template is False
    assert found.admin_token == "correct-horse"


def test_ollama_variables_without_effect_are_listed() -> None:
    environ = {"OLLAMA_NOHISTORY": "1", "OLLAMA_LLM_LIBRARY": "x", "OLLAMA_DEBUG": "0", "PATH": "/"}
    assert resolved(environ).without_effect == ("OLLAMA_LLM_LIBRARY", "OLLAMA_NOHISTORY")


def test_a_wrong_value_names_variable_value_and_what_is_allowed() -> None:
    problem = str(failure({"OLLAMA_NUM_PARALLEL": "many"}))
    assert problem == (
        "OLLAMA_NUM_PARALLEL = 'many' (environment): allowed is a whole number from 0 to 1024"
    )
    assert "one of f32, f16" in str(failure(file_text='kv_cache_type = "q9"'))
    assert "from 0 to 65535" in str(failure(flags={"port": "70000"}))
    assert "true or false" in str(failure({"OLLAMA_NOPRUNE": "maybe"}))


def test_a_wrong_secret_is_not_repeated() -> None:
    problem = str(failure({"OLLAMA_ADMIN_TOKEN": "my secret pass"}))
    assert "my secret pass" not in problem
    assert "printable ASCII" in problem


def test_unknown_keys_are_refused_with_the_nearest_known_one() -> None:
    assert "did you mean max_queue?" in str(failure(file_text="max_que = 3"))
    assert "did you mean LLAMESH_CPU_THREADS?" in str(failure({"LLAMESH_CPU_THREAD": "3"}))
    assert "known are " in str(failure(file_text="zzzzz = 3"))


def test_the_file_must_be_flat_toml_without_home() -> None:
    assert "not valid TOML" in str(failure(file_text="port = "))
    assert "list of texts" in str(failure(file_text="origins = [1]"))
    assert "unknown key" in str(failure(file_text="[server]\nport = 1"))
    assert "list of texts" in str(failure(file_text="[port]\nx = 1"))
    assert "LLAMESH_HOME" in str(failure(file_text='home = "/x"'))
    assert resolved(file_text='origins = ["https://a.example"]').settings.origins == (
        "https://a.example",
    )


def test_toml_numbers_stay_numbers() -> None:
    assert resolved(file_text="keep_alive_s = 1.5").settings.keep_alive_s == 1.5
    assert "whole number" in str(failure(file_text="max_queue = true"))
    assert "whole number" in str(failure(file_text="max_queue = 1.5"))


def test_sizes_take_units() -> None:
    assert settings(LLAMESH_HOST_CACHE_BYTES="512MiB").host_cache_bytes == 512 * 2**20
    assert settings(LLAMESH_HOST_CACHE_BYTES="2GB").host_cache_bytes == 2 * 10**9
    assert "512MiB" in str(failure({"LLAMESH_HOST_CACHE_BYTES": "2 cups"}))


@pytest.mark.parametrize("host", ["0.0.0.0", "192.168.1.4:80", "::", ":11434", "my-host"])
def test_an_address_beyond_loopback_demands_a_choice(host: str) -> None:
    problem = failure({"OLLAMA_HOST": host})
    assert problem.key == "host"
    assert "--auth open" in str(problem)
    assert settings(OLLAMA_HOST=host, LLAMESH_AUTH="open").auth == "open"


@pytest.mark.parametrize("host", ["127.0.0.1", "127.9.9.9", "::1", "localhost"])
def test_loopback_needs_no_choice(host: str) -> None:
    assert settings(OLLAMA_HOST=host).auth is None


def test_token_auth_is_refused_with_the_reason() -> None:
    assert "do not exist in this release" in str(failure(flags={"auth": "token"}))


def test_show_hides_secrets_and_names_origins() -> None:
    found = resolved({"OLLAMA_ADMIN_TOKEN": "correct-horse", "OLLAMA_LOAD_TIMEOUT": "0"})
    text = show_text(found)
    assert "correct-horse" not in text
    assert "environment OLLAMA_ADMIN_TOKEN" in text
    answer = json.loads(show_json(found))
    assert answer["settings"]["admin_token"]["value"] == "(hidden)"
    assert answer["settings"]["load_timeout_s"] == {
        "value": "no limit",
        "origin": "environment",
        "name": "OLLAMA_LOAD_TIMEOUT",
    }
    assert "correct-horse" not in show_json(found)


def test_show_says_what_no_value_means() -> None:
    text = show_text(resolved({"OLLAMA_KEEP_ALIVE": "-1", "OLLAMA_GO_TEMPLATE": "auto"}))
    lines = {line.split()[0]: line.split()[1] for line in text.splitlines() if line}
    assert (lines["keep_alive_s"], lines["go_template"]) == ("forever", "auto")


def test_load_reads_the_file_of_the_chosen_home(tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text("max_queue = 11\n")
    found = load({"LLAMESH_HOME": str(tmp_path)}, {})
    assert found.settings.max_queue == 11
    assert found.settings.cpu_threads >= 1


@pytest.mark.parametrize(
    ("content", "words"), [(b"\xff\xfe", "UTF-8"), (b"#" * (2 << 20), "over 1048576 bytes")]
)
def test_an_unreadable_file_is_told(tmp_path: Path, content: bytes, words: str) -> None:
    (tmp_path / "config.toml").write_bytes(content)
    with pytest.raises(ConfigError, match=words):
        load({"LLAMESH_HOME": str(tmp_path)}, {})


def test_config_show_works_with_a_broken_store(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "models").write_text("a file where the store should be")
    for name in ("OLLAMA_HOST", "OLLAMA_MODELS"):
        monkeypatch.delenv(name, raising=False)
    assert main(["config", "show", "--home", str(tmp_path)]) == 0
    assert str(tmp_path / "models") in capsys.readouterr().out


def test_the_documentation_lists_every_key_and_variable() -> None:
    rows = (Path(__file__).parents[2] / "docs/configuration.md").read_text().splitlines()
    for field in FIELDS:
        row = next((row for row in rows if row.startswith(f"| `{field.name}` |")), "")
        assert field.help in row, field.name
        assert all(f"`{name}`" in row for name, _ in field.variables), field.name
