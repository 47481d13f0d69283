"""Where profiles, models and shipped scenarios are found: in a checkout, in an installed wheel, or beside the user."""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

from hsim.description.hardware import PROFILE_KINDS, Profile, ToolCatalogue
from hsim.description.huggingface import from_hugging_face
from hsim.description.model import ModelArchitecture
from hsim.description.yamlfile import Document, did_you_mean, read_document, validated
from hsim.errors import MistakeError

P = TypeVar("P", bound=Profile)

_PACKAGE = Path(__file__).resolve().parent.parent


def shipped(folder: str) -> Path:
    """The shipped folder or file of that name: inside an installed wheel, or beside the package in a checkout."""
    installed = _PACKAGE / "_shipped" / folder
    return installed if installed.exists() else _PACKAGE.parent / folder


def _find(name: str, folders: tuple[Path, ...], where: str, what: str) -> Path:
    for folder in folders:
        if (file := folder / f"{name}.yaml").is_file():
            return file
    known = sorted({file.stem for folder in folders for file in folder.glob("*.yaml")})
    raise MistakeError(where, f"there is no {what} {name!r}", did_you_mean(name, known))


def scenario_file(name_or_path: str) -> Path:
    """A scenario by path, or by the name of a shipped one."""
    path = Path(name_or_path)
    if path.suffix in (".yaml", ".yml") or path.is_file():
        return path
    return _find(name_or_path, (shipped("scenarios"),), name_or_path, "scenario")


def load_profile(name: str, kind: type[P], where: str, beside: Path = Path()) -> tuple[P, Document]:
    """The hardware profile of that name, checked to be of the kind that is needed at `where`.

    A folder hardware_profiles/ beside the scenario or in the working directory, where `hsim calibrate` writes, comes
    before the shipped one.
    """
    file = _find(name, profile_folders(beside), where, "hardware profile")
    profile, document = read_profile(file)
    if not isinstance(profile, kind):
        needed = next(k for k, v in PROFILE_KINDS.items() if v is kind)
        raise MistakeError(
            where, f"{name!r} is a profile of kind {document.data['kind']!r}", f"it must be of kind {needed!r}"
        )
    return profile, document


def profile_folders(beside: Path) -> tuple[Path, ...]:
    """Where profiles are looked for, the first first."""
    return (beside / "hardware_profiles", Path("hardware_profiles"), shipped("hardware_profiles"))


def read_profile(file: Path) -> tuple[Profile, Document]:
    """The profile in a file. Raises DescriptionError for one that is none."""
    document = read_document(file)
    kind = document.data.get("kind") if isinstance(document.data, dict) else None
    if kind not in PROFILE_KINDS:
        raise MistakeError(
            document.where(("kind",)), f"kind is {kind!r}", did_you_mean(str(kind), sorted(PROFILE_KINDS))
        )
    profile = validated(document, PROFILE_KINDS[kind])
    if profile.name != file.stem:
        raise MistakeError(
            document.where(("name",)), f"is {profile.name!r}", f"a profile has the name of its file, {file.stem!r}"
        )
    return profile, document


def load_tools(where: str) -> ToolCatalogue:
    """The shipped catalogue of tools."""
    return load_profile("tools", ToolCatalogue, where)[0]


def load_model(name_or_path: str, where: str, beside: Path) -> ModelArchitecture:
    """A model of the catalogue, or the Hugging Face config.json at a path (absolute, beside the scenario, or here)."""
    if name_or_path.endswith(".json"):
        candidates = (beside / name_or_path, Path(name_or_path))
        return from_hugging_face(next((c for c in candidates if c.is_file()), candidates[-1]))
    file = _find(
        name_or_path,
        (beside / "models", Path("models"), shipped("models")),
        where,
        "model (or give the path of a config.json)",
    )
    return validated(read_document(file), ModelArchitecture)
