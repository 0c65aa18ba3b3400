"""``methods`` and ``doctor``: what there is, and what is wrong."""

from __future__ import annotations

import dataclasses
import inspect
import typing
from typing import Any

from protolearn.cli.shared import say, say_json


def run_methods(args: Any) -> int:
    """List methods, or one with its settings."""
    from protolearn.methods import get_method, list_methods

    if args.name is None:
        found = list_methods()
        if args.json:
            say_json([_facts(cls) for cls in found.values()])
            return 0
        for slug, cls in found.items():
            say(f"{slug}\n  {cls.paper}\n  area: {cls.area}\n  verified: {cls.verified}")
        say("\nprotolearn methods NAME lists the settings of one.", args.quiet)
        return 0
    cls = get_method(args.name)
    if args.json:
        say_json(_facts(cls))
        return 0
    module = inspect.getmodule(cls)
    say((inspect.getdoc(module) or inspect.getdoc(cls) or cls.__name__).rstrip())
    say(f"\nverified: {cls.verified}\n\nsettings (--{cls.slug}.NAME VALUE):")
    rows = [(f"--{cls.slug}.{name}", str(entry["default"]), entry["type"]) for name, entry in _settings(cls).items()]
    widths = [max(len(row[column]) for row in rows) for column in range(2)]
    for option, default, kind in rows:
        say(f"  {option:<{widths[0]}}  {default:<{widths[1]}}  {kind}")
    for name, recipe in cls.recipes.items():
        say(f"\nrecipe {name} (--recipe {name}): {recipe.about}")
        for group in ("method", "encoder", "augment", "options"):
            if settings := getattr(recipe, group):
                say(f"  {group}: " + ", ".join(f"{key} {value}" for key, value in settings.items()))
    return 0


def _facts(cls: Any) -> dict[str, Any]:
    return {
        "name": cls.slug, "area": cls.area, "paper": cls.paper, "verified": cls.verified, "settings": _settings(cls),
        "recipes": {name: dataclasses.asdict(recipe) for name, recipe in cls.recipes.items()},
    }  # fmt: skip


def _settings(cls: Any) -> dict[str, dict[str, Any]]:
    hints = typing.get_type_hints(cls)
    return {
        field.name: {
            "default": list(field.default) if isinstance(field.default, tuple) else field.default,
            "type": _kind(hints[field.name]),
        }
        for field in dataclasses.fields(cls)
    }


def _kind(hint: Any) -> str:
    if typing.get_origin(hint) is typing.Literal:
        return " | ".join(map(repr, typing.get_args(hint)))
    return hint.__name__ if isinstance(hint, type) and not typing.get_args(hint) else str(hint)


def run_doctor(args: Any) -> int:
    """Tell about this installation, and about a model and data."""
    from protolearn.tasks.doctor import environment, examine

    facts = environment()
    findings = None
    if args.model is not None:
        from protolearn.cli.shared import parts, the_model

        model = the_model(args.model, args.device)
        train, test = (None, None) if args.data is None else parts(model, args.data, args.test)
        findings = examine(model, train, test, batch_size=args.batch_size, device=model.bank.ids.device)
    bad = any(finding.severity == "error" for finding in findings or ())
    if args.json:
        listed = None if findings is None else [finding.to_dict() for finding in findings]
        say_json({"environment": facts, "findings": listed})
        return int(bad)
    if findings is None or not args.quiet:
        _say_environment(facts)
    if findings is not None:
        say(f"\n{args.model}:" if not args.quiet else f"{args.model}:")
        for finding in findings:
            say(f"  {finding.severity}: {finding.message}")
        if not findings:
            say("  nothing suspicious" + ("" if args.data is not None else " (give the training data to look further)"))
    return int(bad)


def _say_environment(facts: dict[str, Any]) -> None:
    say(f"python {facts['python']} on {facts['platform']}")
    say("devices: " + ", ".join(facts["devices"]))
    say("packages: " + ", ".join(f"{name} {version or 'MISSING'}" for name, version in facts["packages"].items()))
    say("extras:")
    for name, extra in facts["extras"].items():
        if extra["missing"]:
            say(f"  {name:<10} without {', '.join(extra['missing'])}: {extra['install']}")
        else:
            say(f"  {name:<10} installed")
