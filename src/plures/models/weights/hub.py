"""Models on the Hugging Face hub, by the conventions of its mixin: save_pretrained, from_pretrained, push_to_hub.

A model's repository holds model.safetensors and model.json (as in a run folder), README.md (the run's model card),
thresholds.json where thresholds were chosen, and a config.json by which the hub counts downloads. No file in
it is code.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from huggingface_hub import ModelHubMixin, constants, hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

import plures
from plures.errors import PluresError, WorkFailed
from plures.files import writing
from plures.models.model import CARD, SPEC, WEIGHTS, Model, load, save
from plures.models.weights import hub_access

README, THRESHOLDS = "README.md", "thresholds.json"
FILES = (THRESHOLDS, README, SPEC, WEIGHTS)  # the weights last: where they are, nothing else is missing


class HubModel(
    Model,
    ModelHubMixin,
    library_name="plures",
    pipeline_tag="image-classification",
    tags=["plures", "multi-label-classification"],
):
    """A Model that goes to the hub and comes from it; `card` and `thresholds` are the texts that travel with it."""

    card: str | None = None
    thresholds: str | None = None

    @classmethod
    def of(cls, model: Model) -> HubModel:
        """The same modules as a HubModel."""
        made = cls(model.backbone, model.head, model.classes, model.preprocessing, model.parts)
        made._hub_mixin_config = {"library_name": "plures", "plures_version": plures.__version__}
        return made.eval()

    @classmethod
    def read(cls, folder: str | Path) -> HubModel:
        """Of a run folder, or of a folder that `save_pretrained` wrote. Raises PluresError if there is no model."""
        folder = Path(folder)
        made = cls.of(load(folder))
        cards = [folder / name for name in (CARD, README) if (folder / name).is_file()]
        made.card = cards[0].read_text(encoding="utf-8") if cards else None
        chosen = folder / THRESHOLDS
        made.thresholds = chosen.read_text(encoding="utf-8") if chosen.is_file() else None
        return made

    def _save_pretrained(self, save_directory: Path) -> None:
        save(self, save_directory)
        for name, text in ((README, self.card), (THRESHOLDS, self.thresholds)):
            if text is not None:
                with writing(save_directory / name) as new:
                    new.write_text(text, encoding="utf-8")

    @classmethod
    def _from_pretrained(
        cls,
        *,
        model_id: str,
        revision: str | None = None,
        cache_dir: str | Path | None = None,
        force_download: bool = False,
        local_files_only: bool = False,
        token: str | bool | None = None,
        **others: Any,  # what config.json holds: nothing that the model needs
    ) -> HubModel:
        if Path(model_id).is_dir():
            return cls.read(model_id)
        folder = None
        for name in FILES:  # one after another: threads of the client could not be left alone where they hang
            try:
                file = hf_hub_download(
                    model_id,
                    name,
                    revision=revision if folder is None else folder.name,  # the same commit
                    cache_dir=cache_dir,
                    force_download=force_download,
                    local_files_only=local_files_only,
                    token=token,
                )
            except EntryNotFoundError as error:
                lost = isinstance(error, LocalEntryNotFoundError) and not constants.HF_HUB_OFFLINE
                if lost or name in (WEIGHTS, SPEC):
                    raise
            else:
                folder = folder or Path(file).parent
        assert folder is not None
        return cls.read(folder)


def push_to_hub(run: str | Path, repo_id: str, *, private: bool | None = None, token: str | None = None) -> str:
    """Upload a run's model with its card and thresholds to `repo_id` ("name/model"); gives the commit's address.

    private: None leaves that to the account. token: None uses the one of `hf auth login`.
    Neither photos, tags nor settings are sent; the card names the command that trained it.
    Raises PluresError if the folder holds no model, WorkFailed if the hub refuses or cannot be reached.
    """
    model = HubModel.read(run)
    say = "Model trained with plures"
    if not constants.HF_HUB_OFFLINE and not hub_access.answers(constants.ENDPOINT):
        raise WorkFailed(f"{repo_id}: not uploaded: {constants.ENDPOINT} does not answer")
    try:
        return str(model.push_to_hub(repo_id, private=private, token=token, commit_message=say))
    except (HfHubHTTPError, OSError, ValueError) as error:
        raise WorkFailed(f"{repo_id}: not uploaded: {_first_line(error)}") from None


def from_hub(repo_id: str, *, revision: str | None = None, token: str | None = None) -> HubModel:
    """The model that `push_to_hub` uploaded, or that a local folder holds, in evaluation mode.

    revision: a branch, tag or commit. Raises PluresError if there is no such model, or if it is none of plures.
    """
    try:
        if Path(repo_id).is_dir():
            return HubModel.read(repo_id)
        return hub_access.ask_hub(lambda: HubModel.from_pretrained(str(repo_id), revision=revision, token=token))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise PluresError(f"{repo_id}: no model found: {_first_line(error)}") from None


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
