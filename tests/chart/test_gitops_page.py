# SPDX-License-Identifier: Apache-2.0
"""docs/gitops.md: what the chart renders with the values and options of the page."""

from __future__ import annotations

import shlex
from typing import Final

from support.guides.blocks import Page
from support.helm import CHART, Helm, find_object, load_objects, objects_of_kind, release_objects

PAGE: Final = Page("gitops.md")


def _values(block: str) -> dict[str, object]:
    if block == "flux":
        [found] = [one for one in PAGE.objects(block) if one["kind"] == "HelmRelease"]
        return dict(found["spec"]["values"])
    return dict(PAGE.object(block)["spec"]["source"]["helm"]["valuesObject"])


def test_values_of_both_tools_render_the_same(helm: Helm) -> None:
    assert _values("argo operator") == _values("flux")
    objects = release_objects(helm, "mailproxy-operator", "mailproxy-system", _values("flux"))
    webhook = find_object(objects, "MutatingWebhookConfiguration")
    assert "caBundle" not in webhook["webhooks"][0]["clientConfig"]


def test_crd_is_a_template_with_the_annotation_that_keeps_it(helm: Helm) -> None:
    assert not (CHART / "crds").exists()
    crd = find_object(release_objects(helm, "x", "mail", {}), "CustomResourceDefinition")
    assert crd["metadata"]["annotations"] == {"helm.sh/resource-policy": "keep"}


def test_kinds_that_are_not_named_are_left_out(helm: Helm) -> None:
    command = PAGE.block("template").replace("\\\n", " ").partition(" > ")[0]
    program, *arguments = shlex.split(command)
    assert program == "helm"
    arguments = [str(CHART) if one == "charts/mailproxy-operator" else one for one in arguments]
    named = load_objects(helm.check_output(*arguments))
    assert len(objects_of_kind(named, "PodMonitor")) == 1
    at = arguments.index("--api-versions")
    unnamed = load_objects(helm.check_output(*arguments[:at], *arguments[at + 2 :]))
    assert objects_of_kind(unnamed, "PodMonitor") == []
    assert len(unnamed) == len(named) - 1


def test_entries_of_proxies_take_the_annotation_against_pruning(helm: Helm) -> None:
    annotation = {"argocd.argoproj.io/sync-options": "Prune=false"}
    spec = PAGE.object("proxy")["spec"]
    values = {"proxies": {"edge": {"annotations": annotation, "spec": spec}}}
    proxy = find_object(release_objects(helm, "x", "mail", values), "MailProxy")
    assert annotation.items() <= proxy["metadata"]["annotations"].items()
