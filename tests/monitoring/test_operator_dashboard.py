# SPDX-License-Identifier: Apache-2.0
"""Every query of the operator's dashboard, with a Prometheus that scrapes a working operator."""

from __future__ import annotations

import asyncio
import math
import re
from pathlib import Path

import pytest
from mailproxy_monitoring.operator_dashboard import OPERATOR

from support.needs import Needs
from support.prometheus_world.operating import operating
from support.prometheus_world.watcher import Watcher, as_pods, substituted, watch
from support.servers.programs import Ports, run_program

QUERIES = [(panel.title, *query) for panel in OPERATOR.panels for query in panel.queries]
SECONDS = 30


@pytest.mark.interop
async def test_every_query_returns_data_and_every_legend_fits(needs: Needs, tmp_path: Path) -> None:
    port, asked = Ports().take(), Ports().take()
    path, promtool = needs("prometheus"), needs("promtool")
    async with operating(port):
        scrape = as_pods("mailproxy-operator", "mailproxy-system", {"operator-0": f"127.0.0.1:{port}"})
        watcher = await asyncio.to_thread(watch, path, tmp_path, asked, [scrape])
        try:
            missing = QUERIES
            async with asyncio.timeout(SECONDS):
                while missing:
                    await asyncio.sleep(0.5)
                    missing = [
                        one for one in missing if not await asyncio.to_thread(_has_data, watcher, *one)
                    ]
            page = await asyncio.to_thread(watcher.page, f"http://127.0.0.1:{port}/metrics")
            assert await asyncio.to_thread(run_program, [promtool, "check", "metrics"], stdin=page) == ""
        except TimeoutError:
            pytest.fail(f"no data for {missing}")
        finally:
            await asyncio.to_thread(watcher.running.stop)


def _has_data(watcher: Watcher, title: str, query: str, legend: str) -> bool:
    found = watcher.now(substituted(query))
    if not any(math.isfinite(float(one["value"][1])) for one in found):
        return False
    assert set(re.findall(r"{{(\w+)}}", legend)) <= found[0]["metric"].keys(), title
    assert len(found) == 1 or "{{" in legend, title
    return True
