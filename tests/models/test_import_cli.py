"""`plures import-weights`: from another program's checkpoint to numbers and heat maps, and what goes wrong."""

import gzip
import json
from pathlib import Path

import pytest
import torch
from PIL import Image

from models.filled import filled_state
from plures import load
from plures.models.heads.transformer import sine_code
from plures.models.outputs import grid_boxes
from shared import SHARED, needs_shared

KEYS = Path(__file__).parents[1] / "reference" / "q2l" / "small_r18_96_keys.json.gz"
COCO = SHARED / "data" / "coco"


def q2l_state(classes=3):
    """A small Query2Label model in the official program's names."""
    keys = json.loads(gzip.decompress(KEYS.read_bytes()))["keys"]
    keys |= {"query_embed.weight": [classes, 512], "fc.W": [1, classes, 512], "fc.b": [1, classes]}
    code = sine_code(grid_boxes(3, 3), 512).T.reshape(1, 512, 3, 3).float()
    return filled_state(keys, code=code)


class Code:
    def __reduce__(self):
        return (eval, ("1 + 1",))


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A checkpoint of three classes, whole, truncated and with code in it; class lists; pictures with tags."""
    folder = tmp_path_factory.mktemp("files")
    state = q2l_state()
    torch.save({"state_dict": {f"module.{name}": t for name, t in state.items()}, "epoch": 4}, folder / "whole.pkl")
    whole = (folder / "whole.pkl").read_bytes()
    (folder / "cut.pkl").write_bytes(whole[: len(whole) // 2])
    torch.save({"state_dict": state, "hook": Code()}, folder / "code.pkl")
    torch.save({"conv1.weight": torch.zeros(1)}, folder / "other.pkl")
    (folder / "three.txt").write_text("cat\ndog\nsofa\n\n")
    (folder / "four.txt").write_text("cat\ndog\nsofa\nclass 1\n")
    (folder / "none.txt").write_text("\n")
    (folder / "config.json").write_text(json.dumps({"nheads": 8, "img_size": 96}))
    (folder / "resnet18.json").write_text(json.dumps({"architecture": "resnet18", "image_size": 64}))
    (folder / "vit.json").write_text(json.dumps({"architecture": "vit_tiny_patch16_224"}))
    (folder / "wrong.json").write_text(json.dumps({"architecture": "resnet_eighteen"}))
    (folder / "photos").mkdir()
    for i in range(6):
        Image.effect_noise((50, 40), 20 + 30 * i).convert("RGB").save(folder / "photos" / f"{i}.png")
    rows = "".join(f"photos/{i}.png,{int(i < 3)},{int(i % 2)},{int(i > 3)}\n" for i in range(6))
    (folder / "tags.csv").write_text("image,cat,dog,sofa\n" + rows)
    return folder


def test_a_checkpoint_becomes_a_run_that_evaluates_predicts_and_draws(plures, files, tmp_path):
    run = tmp_path / "run"
    code, _, err = plures(
        "import-weights",
        "q2l",
        files / "whole.pkl",
        "--classes",
        files / "three.txt",
        "--recipe",
        "liu2021:cvt_384",
        "--out",
        run,
    )
    assert code == 0, err
    assert f"plures evaluate {run} DATA" in err
    assert json.loads((run / "imported.json").read_text())["checkpoint"] == "whole.pkl"
    code, _, err = plures("evaluate", run, files / "tags.csv", "--json", tmp_path / "r.json", "--force")
    assert code == 0, err
    report = json.loads((tmp_path / "r.json").read_text())
    assert (report["images"], report["classes_scored"], report["definition"]) == (6, 3, "voc")
    maps = ("--heatmaps", tmp_path / "maps", "--threshold", "0.0001")
    code, _, err = plures("predict", run, files / "photos", "--out", tmp_path / "p.csv", *maps)
    assert code == 0, err
    assert len(list((tmp_path / "maps").glob("*.png"))) == 18
    code, _, err = plures("table", run)
    assert code == 2
    assert "no report yet" in err
    plures("evaluate", run, files / "tags.csv", "--json", run / "report.json")
    code, _, err = plures("table", run, "--out", tmp_path / "t.md")
    assert code == 0, err
    assert "| 91.3 (coco14) |" in (tmp_path / "t.md").read_text()
    code, _, err = plures("evaluate", run)
    assert code == 2
    assert "no data of its own" in err
    code, _, err = plures("train", "--resume", run)
    assert code == 2
    assert f"start={run}" in err
    code, _, err = plures("import-weights", "q2l", files / "whole.pkl", "--out", run)
    assert code == 2
    assert "already holds a run" in err


def test_training_starts_from_imported_weights(plures, files, tmp_path):
    classes = ("--classes", files / "three.txt", "--config", files / "config.json")
    plures("import-weights", "q2l", files / "whole.pkl", *classes, "--out", tmp_path / "run")
    assert load(tmp_path / "run").head.decoder[0].multihead_attn.heads == 8
    recipe = ("--recipe", tmp_path / "run" / "experiment.yaml", f"start={tmp_path / 'run'}")
    still = ("lr=1e-12", "epochs=1", "device=cpu", "workers=0", "test_share=0.4", "batch_size=2", "select=last")
    code, _, err = plures("train", files / "tags.csv", *recipe, *still, "--out", tmp_path / "tuned")
    assert code == 0, err
    before, after = load(tmp_path / "run"), load(tmp_path / "tuned")
    pixels = torch.rand(1, 3, 96, 96)
    torch.testing.assert_close(before(pixels).logits, after(pixels).logits, atol=1e-4, rtol=1e-4)
    (tmp_path / "two.csv").write_text(
        f"image,cat,dog\n{files / 'photos' / '0.png'},1,0\n{files / 'photos' / '1.png'},0,1\n"
    )
    code, _, err = plures("train", tmp_path / "two.csv", *recipe, *still, "--out", tmp_path / "no")
    assert code == 2
    assert "it knows 3 classes (cat, dog, sofa, ...), the data have 2" in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("q2l", "other.pkl"), "is not a Query2Label checkpoint"),
        (("q2l", "cut.pkl"), "truncated"),
        (("q2l", "code.pkl"), "holds code or objects besides tensors"),
        (("q2l", "nowhere.pkl"), "no checkpoint file"),
        (("q2l", "whole.pkl", "--classes", "four.txt"), "knows 3 classes, 4 are named; name 3, or use reinitialise"),
        (("q2l", "whole.pkl", "--classes", "none.txt"), "names no class"),
        (("q2l", "whole.pkl", "--classes", "nowhere.txt"), "cannot read the class names"),
        (("q2l", "whole.pkl", "--config", "three.txt"), "cannot read the configuration"),
        (("mlspl", "whole.pkl"), "is not an MLSPL checkpoint"),
        (("mlspl", "whole.pkl", "--config", "config.json"), "have no configuration"),
        (("timm", "whole.pkl"), "does not say which model it is"),
        (("timm", "whole.pkl", "--config", "wrong.json"), "is not a model of timm"),
        (("timm", "other.pkl", "--config", "resnet18.json"), "has no classifier 'fc'"),
        (("q2l", "whole.pkl", "--recipe", "liu2021:r50"), "recipe 'liu2021' has no row 'r50'"),
        (("q3l", "whole.pkl"), "choose from: q2l, mlspl, timm"),
    ],
)
def test_what_does_not_fit_is_one_line_and_leaves_no_folder(plures, files, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(files)
    code, _, err = plures("import-weights", *arguments, "--out", tmp_path / "run")
    assert code == 2
    assert message in err
    assert len(err.splitlines()) == 1
    assert not (tmp_path / "run").exists()


def test_other_classes_keep_what_the_checkpoint_knows_by_name(plures, files, tmp_path):
    again = ("--classes", files / "four.txt", "--reinitialise", "--out", tmp_path / "run")
    code, _, err = plures("import-weights", "q2l", files / "whole.pkl", *again)
    assert code == 0, err
    model = load(tmp_path / "run")
    torch.testing.assert_close(model.head.classifier.weight[3], q2l_state()["fc.W"][0, 1])


def test_a_classifier_of_torchvision_gives_its_own_logits(plures, files, tmp_path):
    from torchvision.models import resnet18

    net = resnet18(num_classes=7).eval()
    torch.save(net.state_dict(), tmp_path / "net.pth")
    config = ("--config", files / "resnet18.json")
    code, _, err = plures("import-weights", "timm", tmp_path / "net.pth", *config, "--out", tmp_path / "run")
    assert code == 0, err
    model, pixels = load(tmp_path / "run"), torch.rand(2, 3, 64, 64)
    assert model.preprocessing.image_size == 64
    torch.testing.assert_close(model(pixels).logits, net(model.normalise(pixels)), atol=1e-4, rtol=1e-4)
    new = ("--classes", files / "four.txt", "--reinitialise", "--out", tmp_path / "new")
    code, _, err = plures("import-weights", "timm", tmp_path / "net.pth", *config, *new)
    assert code == 0, err
    torch.testing.assert_close(load(tmp_path / "new").head.classifier.weight[3], net.fc.weight[1])


def test_a_classifier_on_a_class_token_is_refused(plures, files, tmp_path):
    import timm

    net = timm.create_model("vit_tiny_patch16_224", num_classes=3)
    torch.nn.init.normal_(net.head.weight)
    torch.save(net.state_dict(), tmp_path / "vit.pth")
    config = ("--config", files / "vit.json", "--out", tmp_path / "run")
    code, _, err = plures("import-weights", "timm", tmp_path / "vit.pth", *config)
    assert code == 2
    assert "does not classify the mean of its feature map" in err


@needs_shared
@pytest.mark.shared
@pytest.mark.slow
def test_the_coco_sample_in_both_conventions_and_both_definitions(plures, tmp_path):
    torch.save(q2l_state(80), tmp_path / "coco.pkl")
    run = tmp_path / "run"
    plures("import-weights", "q2l", tmp_path / "coco.pkl", "--out", run)
    maps = {}
    for variant, images in (("mlspl", 175), ("query2label", 177)):
        for definition in ("plain", "voc"):
            arguments = (f"coco:{COCO}", f"data.variant={variant}", "--definition", definition)
            code, _, err = plures("evaluate", run, *arguments, "--json", tmp_path / "r.json", "--force")
            assert code == 0, err
            report = json.loads((tmp_path / "r.json").read_text())
            assert (report["images"], report["definition"]) == (images, definition)
            maps[variant, definition] = report["map"]
    assert len(set(maps.values())) == 4
    assert all(maps[v, "voc"] > maps[v, "plain"] for v in ("mlspl", "query2label"))
    one = COCO / "val2017" / "000000000139.jpg"
    drawn = ("--out", tmp_path / "p.jsonl", "--heatmaps", tmp_path / "maps", "--threshold", "0.5")
    code, _, err = plures("predict", run, one, *drawn)
    assert code == 0, err
    tags = json.loads((tmp_path / "p.jsonl").read_text())["tags"]
    assert len(tags) == len(list((tmp_path / "maps").glob("000000000139.*.png"))) > 0
    code, _, err = plures("evaluate", run, f"coco:{COCO}", "data.varant=mlspl")
    assert code == 2
    assert "did you mean 'variant'" in err


@needs_shared
@pytest.mark.shared
def test_the_coco_sample_has_355_images_of_which_five_carry_no_annotation():
    from plures import read

    every, annotated = (read(f"coco:{COCO}", variant=v) for v in ("query2label", "mlspl"))
    assert (len(every), len(annotated)) == (355, 350)
    assert (every.splits == "test").sum() - (annotated.splits == "test").sum() == 2
    assert not every.labels.present[every.splits == "test"].any(1).all()
