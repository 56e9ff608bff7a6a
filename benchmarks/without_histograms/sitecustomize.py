# SPDX-License-Identifier: Apache-2.0
"""On the path of a proxy that is measured without histograms, which are most of what metrics cost.

Counters and gauges are numbers that the session adds to in place: there is
nothing to switch off.  A measurement needs the comparison; nobody else does.
"""

from mailproxy.observe.meter import Histogram

Histogram.observe = lambda _self, _seconds: None  # type: ignore[method-assign]
