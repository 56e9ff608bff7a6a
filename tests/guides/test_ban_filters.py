# SPDX-License-Identifier: Apache-2.0
"""The files for fail2ban and CrowdSec, with their own programs, and the fields that they read."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any, Final

import pytest
import yaml

from mailproxy.enums import CloseReason, LoginResult, Method
from mailproxy.telemetry.log_format import ServerFields, SessionRecord, TimestampFormatter, json_session
from support.needs import Needs, find_program
from support.servers.proxy import ROOT

DEPLOY: Final = ROOT / "deploy"
FILTER: Final = DEPLOY / "fail2ban/filter.d/mailproxy.conf"
CROWDSEC: Final = DEPLOY / "crowdsec"
FORGED: Final = b'x","client":"203.0.113.9","password_failures":5,"user":"y'
BOT, PHONE, OUTAGES, SPRAYED = "198.51.100.7", "198.51.100.99", "192.0.2.1", "2001:db8::"
START: Final = 1795407407.0


def session(at: float, client: str, user: bytes = b"bob", *, failures: int = 1, **fields: Any) -> str:
    values: dict[str, Any] = {"server": ServerFields('im"ap', "imap"), "method": Method.PLAIN, "attempts": 1}
    values |= {"result": LoginResult.DENIED, "reason": CloseReason.AUTH_REJECTED} | fields
    record = SessionRecord(
        session=f"s-{at:.0f}-{client}", client=client, user=user, password_failures=failures, **values
    )
    return json_session(record, TimestampFormatter().format(START + at))


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sessions of a bot, a phone with an old password, many addresses with one password, and of outages."""
    lines = [
        session(0, OUTAGES, FORGED, failures=0, result=result) for result in LoginResult for _ in range(10)
    ]
    for number in range(30):
        lines += [
            session(number, BOT, b"user%d" % (number % 8), pwfp=f"{number:016x}"),
            session(number, PHONE, b"phone", pwfp="f" * 16),
            session(number, f"{SPRAYED}{number + 1:x}", b"other%d" % number, pwfp="e" * 16),
        ]
    path = tmp_path_factory.mktemp("log") / "mailproxy.log"
    path.write_text("".join(lines))
    return path


def matched(program: str, log: Path) -> int:
    command = [program, str(log), str(FILTER)]
    output = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120).stdout
    found = re.search(r"(\d+) lines, 0 ignored, (\d+) matched", output)
    assert found is not None, output
    assert int(found[1]) == len(log.read_text().splitlines())
    return int(found[2])


@pytest.mark.parametrize(
    "prefix", ["", "Nov 23 04:16:47 host mailproxy[1]: ", "2026-11-23T04:16:47Z stdout F "]
)
def test_fail2ban_matches_refused_passwords_only(
    needs: Needs, log: Path, tmp_path: Path, prefix: str
) -> None:
    lines = tmp_path / "log"
    lines.write_text("".join(prefix + line + "\n" for line in log.read_text().splitlines()))
    assert matched(needs("fail2ban-regex"), lines) == 90


def test_fail2ban_finds_addresses_of_both_families_and_no_forged_one(needs: Needs, log: Path) -> None:
    command = [needs("fail2ban-regex"), "-o", "<ip>", str(log), str(FILTER)]
    output = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120).stdout
    assert set(output.split()) == {BOT, PHONE, *(f"{SPRAYED}{number + 1:x}" for number in range(30))}


def test_fail2ban_accepts_the_jail(needs: Needs, tmp_path: Path) -> None:
    program, folder = needs("fail2ban-client"), tmp_path / "fail2ban"
    shutil.copytree("/etc/fail2ban", folder)
    for path in (folder / "jail.d").iterdir():
        path.unlink()  # those of the package, which may need other programs
    shutil.copy(FILTER, folder / "filter.d")
    shutil.copy(DEPLOY / "fail2ban/jail.d/mailproxy.conf", folder / "jail.d")
    command = [program, "-c", str(folder), "-d"]
    run = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert run.returncode == 0, run.stderr
    assert "['add', 'mailproxy', 'systemd']" in run.stdout
    assert "['set', 'mailproxy', 'maxretry', 5]" in run.stdout


def documents(name: str) -> list[dict[str, Any]]:
    return [each for each in yaml.safe_load_all((CROWDSEC / name).read_text()) if each]


SCENARIOS: Final = [
    each
    for path in sorted((CROWDSEC / "scenarios").iterdir())
    for each in documents(f"scenarios/{path.name}")
]


def test_crowdsec_files_read_fields_that_the_session_line_has() -> None:
    (parser,) = documents("parsers/s01-parse/mailproxy-logs.yaml")
    text = json.dumps(parser)
    fields = set(re.findall(r"evt\.Parsed\.message, '(\w+)'", text))
    line = json.loads(session(0, BOT, pwfp="0" * 16))
    assert fields == {"event", "client", "protocol", "user", "pwfp", "session", "time", "password_failures"}
    assert fields <= line.keys()
    metas = {each["meta"] for each in parser["statics"] if "meta" in each}
    for scenario in SCENARIOS:
        used = set(re.findall(r"evt\.Meta\.(\w+)", json.dumps(scenario)))
        assert used <= metas, scenario["name"]
        assert "mailproxy_failed_password" in scenario["filter"], scenario["name"]
        assert scenario["labels"]["remediation"] is (scenario["groupby"] == "evt.Meta.source_ip")


RAW: Final = """
filter: "evt.Line.Labels.type == 'mailproxy'"
onsuccess: next_stage
name: test/raw
statics:
  - {parsed: message, expression: evt.Line.Raw}
  - {parsed: program, value: mailproxy}
"""
ENRICH: Final = """
filter: "evt.StrTime != ''"
name: test/dates
statics:
  - {method: ParseDate, expression: evt.StrTime}
  - {target: MarshaledTime, expression: evt.Enriched.MarshaledTime}
  - {meta: timestamp, expression: evt.Enriched.MarshaledTime}
"""


def crowdsec(folder: Path, log: Path) -> str:
    """Let CrowdSec read a log once, and return what it prints."""
    program, tool = find_program("crowdsec"), find_program("cscli")
    if program is None or tool is None:
        pytest.skip(
            "needs crowdsec and cscli, whose package registers its machine with a service at installation"
        )
    etc = folder / "etc"
    for name in ("patterns", "notifications", "postoverflows", "parsers/s00-raw", "parsers/s02-enrich"):
        (etc / name).mkdir(parents=True)
    for name in ("data", "hub", "plugins"):
        (folder / name).mkdir()
    shutil.copytree(CROWDSEC / "parsers/s01-parse", etc / "parsers/s01-parse")
    shutil.copytree(CROWDSEC / "scenarios", etc / "scenarios")
    (etc / "parsers/s00-raw/raw.yaml").write_text(RAW)
    (etc / "parsers/s02-enrich/dates.yaml").write_text(ENRICH)
    (folder / "hub/index.json").write_text(
        json.dumps({kind: {} for kind in ("parsers", "scenarios", "collections", "postoverflows")})
    )
    for name in ("acquis.yaml", "simulation.yaml", "profiles.yaml"):
        (etc / name).write_text("name: test\ndecisions: []\n" if name == "profiles.yaml" else "")
    config = folder / "config.yaml"
    credentials = str(etc / "credentials.yaml")
    config.write_text(
        json.dumps(
            {
                "common": {"daemonize": False, "log_media": "stdout", "log_level": "info"},
                "config_paths": {
                    "config_dir": str(etc),
                    "data_dir": str(folder / "data"),
                    "simulation_path": str(etc / "simulation.yaml"),
                    "hub_dir": str(folder / "hub"),
                    "index_path": str(folder / "hub/index.json"),
                    "notification_dir": str(etc / "notifications"),
                    "plugin_dir": str(folder / "plugins"),
                },
                "crowdsec_service": {"acquisition_path": str(etc / "acquis.yaml"), "parser_routines": 1},
                "db_config": {"type": "sqlite", "db_path": str(folder / "data/c.db")},
                "plugin_config": {"user": "nobody", "group": "nogroup"},
                "api": {
                    "client": {"credentials_path": credentials},
                    "server": {"listen_uri": "127.0.0.1:18098", "profiles_path": str(etc / "profiles.yaml")},
                },
                "prometheus": {"enabled": False},
            }
        )
    )
    add = [
        tool,
        "-c",
        str(config),
        "machines",
        "add",
        "m",
        "-p",
        "only-for-a-test",
        "--force",
        "-f",
        credentials,
    ]
    subprocess.run(add, check=True, capture_output=True, timeout=60)
    command = [program, "-c", str(config), "-type", "mailproxy", "-dsn", f"file://{log}", "-no-capi"]
    run = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    return run.stdout + run.stderr


def test_crowdsec_reports_the_bot_and_the_spray_but_no_phone_and_no_outage(log: Path, tmp_path: Path) -> None:
    output = crowdsec(tmp_path, log)
    found = set(re.findall(r"Ip (.+?) performed 'mailproxy/(.+?)'", output))
    assert found == {
        (BOT, "mailproxy-bf"),
        (BOT, "mailproxy-spray"),
        (BOT, "mailproxy-slow-bf"),
        ("11 sources", "mailproxy-spray-password"),
    }, output
