"""The documentation's links lead somewhere, and its commands have keys and options that exist."""

import re
import shlex
from copy import deepcopy
from functools import cache
from pathlib import Path

import pytest
import yaml
from omegaconf import DictConfig, OmegaConf

from stma.compose import load_config

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "datasets" / "README.md", *sorted(ROOT.glob("docs/*.md"))]


def commands(page: Path) -> list[list[str]]:
    """Shell commands of the project's programs, in blocks and in running text."""
    text = page.read_text(encoding="utf-8")
    blocks = re.findall(r"^```sh\n(.*?)^```", text, re.S | re.M)
    lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    lines += re.findall(r"`((?:python|torchrun|stma|train\.py|eval\.py) [^`]+)`", text)
    found: list[list[str]] = []
    for line in lines:
        lexer = shlex.shlex(line, posix=True, punctuation_chars=";")
        lexer.whitespace_split = True
        found.append([])
        for word in lexer:
            if word == ";":
                found.append([])
            else:
                found[-1].append(word)
    return [each for each in found if each]


def arguments_of(program: str) -> list[tuple[str, ...]]:
    """What follows a program's name in each command that has it."""
    found = set()
    for words in (each for page in PAGES for each in commands(page)):
        if program in words:
            arguments = words[words.index(program) + 1 :]
            end = [i for i, word in enumerate(arguments) if word in (";", "&&", "}", "|")]
            found.add(tuple(arguments[: end[0]] if end else arguments))
    return sorted(found)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        path, _, anchor = link.partition("#")
        if path.startswith("http"):
            continue
        target = page.parent / path if path else page
        assert target.exists(), link
        if anchor:
            titles = re.findall(r"^#+ (.*)$", target.read_text(encoding="utf-8"), re.M)
            anchors = [re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles]
            assert anchor in anchors, link


@cache
def composed(program: str, choices: tuple[str, ...]) -> DictConfig:
    return load_config(ROOT / "configs", program, choices)


@pytest.mark.parametrize("program", ["train", "eval"])
def test_settings_exist(program: str) -> None:
    """Composed by what each command chooses from the groups; its other settings are changed then,
    which fails likewise where there is none of that name."""
    for arguments in arguments_of(f"{program}.py"):
        choices, settings = [], []
        for argument in arguments:
            if "=" not in argument or argument.startswith(("-", "hydra")) or "..." in argument:
                continue
            key, _, value = argument.partition("=")
            if "-m" in arguments and not value.startswith("["):
                value = value.partition(",")[0]
            chosen = key.startswith(("+", "~")) or (ROOT / "configs" / key).is_dir()
            (choices if chosen else settings).append(f"{key}={value}")
        config = deepcopy(composed(program, tuple(choices)))
        for key, _, value in (each.partition("=") for each in settings):
            OmegaConf.update(config, key, yaml.safe_load(value), merge=False)


def test_options_exist() -> None:
    programs = {f"scripts/{path.name}": path for path in ROOT.glob("scripts/*.py")}
    programs |= {"stma": ROOT / "stma" / "cli.py"}
    for words in (each for page in PAGES for each in commands(page)):
        for number, word in enumerate(words):
            assert not word.startswith("scripts/") or word in programs, word
            if word in programs and (word != "stma" or number == 0):
                source = programs[word].read_text(encoding="utf-8")
                options = {each.partition("=")[0] for each in words if each.startswith("--")}
                for option in options - {"--help"}:
                    assert f'"{option}"' in source, (word, option)


def test_no_command_reads_what_others_do_not_have() -> None:
    for page in PAGES:
        assert "../shared" not in page.read_text(encoding="utf-8"), page
