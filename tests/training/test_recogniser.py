"""The training of the recogniser, in miniature: it learns, it streams, and an interruption changes nothing."""

import argparse
import json
import random
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("soxr")

from training.recogniser import accent, phones, schedule, shards, spelling, tokens, voices, weights  # noqa: E402
from training.recogniser.augment import Augmenter  # noqa: E402
from training.recogniser.bank import Bank, frames_of, padded  # noqa: E402
from training.recogniser.features import BINS, frames, log_mel, mel_filters  # noqa: E402
from training.recogniser.losses import agreement, guided_loss, mixed_loss  # noqa: E402
from training.recogniser.model import Config, Recogniser  # noqa: E402
from training.recogniser.plans import plain, pool  # noqa: E402
from training.recogniser.train import Training  # noqa: E402

SMALL: dict[str, Any] = {"blocks": 2, "said_after": (1,), "width": 48, "inner": 96, "channels": 8, "heads": 2}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: Any) -> Any:
    folder = tmp_path_factory.mktemp("tokens")
    (folder / "t.tsv").write_text("words\tone two three four\nwords\tfive six seven\nwords\tzero oh eight nine\n" * 3)
    with patch("sys.argv", ["tokens", str(folder / "t.tsv"), str(folder / "tokens.json")]):
        tokens.main()
    return tokens.load(folder / "tokens.json")


@pytest.fixture
def folder(tmp_path: Any) -> Any:
    """Two shards of tones: each digit has a pitch of its own."""
    rng = np.random.default_rng(3)
    words = ["one", "two", "three", "four"]
    for number in range(2):
        clips, sound = [], []
        for _ in range(6):
            said = [words[n] for n in rng.integers(0, 4, 3)]
            tones = [np.sin(2 * np.pi * (300 + 400 * words.index(w)) * np.arange(6400) / 16000) for w in said]
            samples = (np.concatenate(tones) * 9000).astype(np.int16)
            clips.append(shards.Clip(" ".join(said), "espeak", len(samples)))
            sound.append(samples)
        shards.write(tmp_path, f"espeak-{number}", clips, sound)
    return tmp_path


def options(**changes: Any) -> Any:
    plain = {
        "seed": 5, "config": SMALL, "batch_seconds": 12, "peak": 3e-3, "warm_steps": 5, "steps": 6,
        "total_minutes": None, "guided_steps": 4, "average": 0.9, "precision": "fp32",
        "views": 2, "launched": False, "decay": 0.03,
    }  # fmt: skip
    return argparse.Namespace(**{**plain, **changes})


def new_training(tokenizer: Any, folder: Any, **changes: Any) -> Any:
    bank = Bank(tokenizer, torch.device("cpu"), 0.1)
    bank.take_new([folder])
    return Training(options(**changes), bank, torch.device("cpu"))


def run(training: Any, steps: Any) -> Any:
    for _ in range(steps):
        training.advance(lambda **figures: None)
    return training.average.state_dict()


def test_an_interruption_changes_nothing(tokenizer: Any, folder: Any, tmp_path: Any) -> None:
    unbroken = run(new_training(tokenizer, folder), 6)
    first = new_training(tokenizer, folder)
    run(first, 3)
    torch.save(first.state(), tmp_path / "last.pt")
    second = new_training(tokenizer, folder)
    second.restore(torch.load(tmp_path / "last.pt", weights_only=False))
    resumed = run(second, 3)
    assert all(torch.equal(unbroken[name], resumed[name]) for name in unbroken)
    assert second.finished


def test_bfloat16_trains_and_a_step_without_a_finite_gradient_is_left_out(tokenizer: Any, folder: Any) -> None:
    training = new_training(tokenizer, folder, precision="bf16")
    run(training, 2)
    before = {name: value.clone() for name, value in training.model.state_dict().items()}
    with torch.no_grad():
        training.augmenter._filters *= float("inf")
    run(training, 1)
    assert all(torch.equal(before[name], value) for name, value in training.model.state_dict().items())


def test_the_loss_falls(tokenizer: Any, folder: Any) -> None:
    training = new_training(tokenizer, folder, steps=60, guided_steps=20)
    losses = []
    for _ in range(60):
        losses.append(float(training._learn(0.0)[0]))
        training.step += 1
    assert np.mean(losses[-5:]) < 0.5 * np.mean(losses[:5])


def test_batches_come_in_few_shapes_that_their_clips_fit(tokenizer: Any, folder: Any) -> None:
    bank = Bank(tokenizer, torch.device("cpu"), 0.1)
    bank.take_new([folder])
    plans = pool(bank, 5, 0, 1.0, 12)
    lengths = np.asarray(bank.lengths)
    assert len({plan.room for plan in plans}) == len({(plan.room, len(plan.clips)) for plan in plans}) > 1
    for plan in plans:
        longest = (lengths[plan.clips] / plan.paces).astype(int) + plan.leads
        assert (padded(longest) == plan.room).all()
        batch = bank.batch(plan)
        assert batch.sound.shape == (len(plan.clips), plan.room)
        assert torch.equal(batch.frame_counts, batch.frame_counts.clamp(1, frames(plan.room) // 4))


def test_passes_give_the_gradients_of_plain_backpropagation(tokenizer: Any, folder: Any) -> None:
    training = new_training(tokenizer, folder, config={**SMALL, "dropout": 0.0})
    batch = training.bank.batch(plain(training.bank, np.arange(4)))
    mel = log_mel(batch.sound, mel_filters())
    mixed_loss(training.passes.forward(mel, 8), batch).backward()
    training.passes.backward()
    parted = [weight.grad.clone() for weight in training.model.parameters()]
    training.model.zero_grad()
    mixed_loss(training.model(mel, 8), batch).backward()
    for weight, grad in zip(training.model.parameters(), parted, strict=True):
        torch.testing.assert_close(weight.grad, grad)


def test_mixed_loss_is_ctc_of_each_output_by_itself(tokenizer: Any, folder: Any) -> None:
    training = new_training(tokenizer, folder)
    batch = training.bank.batch(plain(training.bank, np.arange(4)))
    said = training.model(log_mel(batch.sound, mel_filters()))
    inner, last = (
        torch.nn.functional.ctc_loss(
            one.transpose(0, 1), batch.units, batch.frame_counts, batch.unit_counts, reduction="sum"
        )
        for one in said
    )
    torch.testing.assert_close(mixed_loss(said, batch), (inner + last) / 2 / batch.unit_counts.sum())


def test_views_agree_with_themselves_only(tokenizer: Any, folder: Any) -> None:
    training = new_training(tokenizer, folder, config={**SMALL, "dropout": 0.0})
    batch = training.bank.batch(plain(training.bank, np.arange(3))).repeated(2)
    mel = log_mel(batch.sound, mel_filters())
    assert agreement(training.model(mel), batch, 2).item() == pytest.approx(0, abs=1e-6)
    mel[3:] *= 0.5
    assert agreement(training.model(mel), batch, 2).item() > 1e-3


def test_a_frame_depends_on_its_chunk_and_the_past_only() -> None:
    model = Recogniser(Config(**SMALL)).eval()
    torch.manual_seed(1)
    mel = torch.randn(1, 128, BINS)
    other = mel.clone()
    other[:, 64:] += 1
    with torch.no_grad():
        here, there = model(mel)[-1], model(other)[-1]
    assert torch.equal(here[:, :16], there[:, :16])
    assert not torch.allclose(here[:, 16:], there[:, 16:])


def test_clips_get_harder_only_after_alignments_were_found(tokenizer: Any, folder: Any, tmp_path: Any) -> None:
    lessons = schedule.Lessons()
    lessons.heed(4.9, 0.05)
    assert lessons.at(0.1) == 0
    assert schedule.strength(lessons.at(0.1)) == 0
    lessons.heed(2.9, 0.1)
    lessons.heed(4.0, 0.15)
    assert lessons.at(0.25) == pytest.approx(0.15)
    late = schedule.Lessons()
    late.heed(4.9, schedule.MOST_HELD)
    assert late.at(schedule.MOST_HELD + 0.1) == pytest.approx(0.1)


def test_people_are_heard_often_but_not_by_heart() -> None:
    moments = np.linspace(0, 1, 1001)
    shares = [schedule.shares(float(moment)) for moment in moments]
    assert all(sum(share.values()) == pytest.approx(1) and min(share.values()) > 0.07 for share in shares)
    people = np.array([share["people"] for share in shares])
    times = 4000 * people.mean() / 2.58
    assert 150 < times < 200
    assert np.all(people[:660] == people[0])
    assert people[-1] > 3 * people[0]
    assert shares[-1]["recorded"] > 2.5 * shares[-1]["formant"]
    assert shares[0]["formant"] > shares[0]["recorded"]


def test_two_clips_of_a_person_are_a_third_one(tokenizer: Any, tmp_path: Any) -> None:
    sound = [np.full(24000, level, np.int16) for level in (100, 200, 300, 400)]
    people = [("one two", "a"), ("three four", "a"), ("five six", "b"), ("seven", "c")]
    listed = [shards.Clip(text, "speechocean762", 24000, speaker) for text, speaker in people]
    file = shards.write(tmp_path, "people", listed, sound)
    bank = Bank(tokenizer, torch.device("cpu"), 0.01)
    assert bank.take(file)
    assert len(bank.starts) == 5
    assert bank.kinds["people"] == [0, 1, 2, 3, 4]
    assert (bank.starts[4], bank.lengths[4]) == (0, 48000)
    assert bank.units[4] == tokenizer.encode("one two three four").ids
    heard = bank.batch(plain(bank, np.array([4]))).sound[0] * 32768
    assert [round(float(heard[place])) for place in (12000, 36000)] == [100, 200]
    for_report = Bank(tokenizer, torch.device("cpu"), 0.01)
    for_report.take_whole(file)
    assert len(for_report.starts) == 4


def test_accented_words_are_written_as_synthesisers_read_them() -> None:
    words = [["h", "ə", "l", "ˈoʊ"], ["w", "ˈɜː", "l", "d"], ["f", "ˈɔːɹ"]]
    assert phones.written(words, phones.RADIO, phones.stressed_radio) == [
        ["hh", "ax0", "l", "ow1"],
        ["w", "er1", "l", "d"],
        ["f", "ao1", "r"],
    ]
    assert phones.written(words, phones.SAMPA, phones.stressed_sampa)[::2] == [
        ["h", "@", "l", '"o_U'],
        ["f", '"O:', r"r\\"],
    ]
    with pytest.raises(ValueError, match="no sign for 'ɬ'"):
        phones.written([["ɬ"]], phones.RADIO, phones.stressed_radio)
    assert accent.even(words, "ˈ")[0] == ["h", "ˈə", "l", "ˈoʊ"]
    # Whatever the rules put in place of a sound can be said, too.
    replaced = {other for others in accent.IPA.values() for other in others} | set(accent.IPA)
    for notation in (phones.RADIO, phones.SAMPA):
        assert replaced <= set(notation)


def test_flite_reads_words_that_its_lexicon_explains() -> None:
    said = voices.Accented([["hh", "ax"], ["l", "ow1"]], halting=False)
    assert voices.Flite._heads("Hello world", said, random.Random(1)) == (["hello", "world"], "hello world")
    assert voices.Flite._heads("in the world", said, random.Random(1)) == (["qaaq", "qabq"], "qaaq qabq")
    halting = voices.Accented(said.words, halting=True)
    spoken = {voices.Flite._heads("Hello world", halting, random.Random(seed))[1] for seed in range(40)}
    assert spoken == {"hello world", "hello, world"}


def test_texts_without_signs_are_read_plainly(monkeypatch: pytest.MonkeyPatch) -> None:
    class Strange:
        def choose(self, _name: str) -> None: ...

        def phonemes(self, _text: str, *, ipa: bool) -> list[list[str]]:
            return [["ɬ"] if ipa else ["L"]]

    monkeypatch.setattr(voices.EspeakLibrary, "shared", Strange)
    assert all(
        voices.mandarin("x", phones.RADIO, phones.stressed_radio, random.Random(seed)) is None for seed in range(20)
    )
    monkeypatch.setattr(Strange, "phonemes", lambda *_, ipa: [["m"], ["ɑː"]])
    said = [voices.mandarin("x", phones.RADIO, phones.stressed_radio, random.Random(seed)) for seed in range(100)]
    assert 30 < sum(one is not None for one in said) < 70
    assert 5 < sum(one is not None and one.halting for one in said) < 35


def test_what_was_found_is_kept_over_an_interruption(tokenizer: Any, folder: Any, tmp_path: Any) -> None:
    training = new_training(tokenizer, folder)
    training.lessons.heed(1.0, 0.02)
    other = new_training(tokenizer, folder)
    other.restore(training.state())
    assert other.lessons.at(0.03) == pytest.approx(0.01)
    training.export(tmp_path / "out")
    third = new_training(tokenizer, folder)
    third.start_from(tmp_path / "out")
    assert third.lessons.at(0.03) == pytest.approx(0.01)


def test_losses_weigh_all_outputs(tokenizer: Any, folder: Any) -> None:
    training = new_training(tokenizer, folder)
    batch = training.bank.batch(plain(training.bank, np.arange(4)))
    said = training.model(log_mel(batch.sound, mel_filters()))
    for loss in (mixed_loss(said, batch), guided_loss(said, batch)):
        loss.backward(retain_graph=True)
        assert all(p.grad is not None and p.grad.isfinite().all() for p in training.model.says.parameters())


def test_exported_weights_are_the_moving_average(tokenizer: Any, folder: Any, tmp_path: Any) -> None:
    training = new_training(tokenizer, folder)
    run(training, 2)
    training.export(tmp_path / "out")
    loaded = weights.load(tmp_path / "out")
    for name, value in training.average.state_dict().items():
        assert torch.allclose(loaded.state_dict()[name], value, atol=1e-3, rtol=1e-3), name
    assert json.loads((tmp_path / "out/config.json").read_text())["step"] == 2


def test_spoiling_keeps_the_shape_and_stays_finite() -> None:
    augmenter = Augmenter(torch.device("cpu"))
    dice = torch.Generator().manual_seed(1)
    sound = torch.randn(5, 16000) * 0.1
    sound[2] = 0
    spoilt = augmenter.spoilt(sound, 1.0, dice)
    assert spoilt.shape == sound.shape
    assert spoilt.isfinite().all()
    assert spoilt.abs().max() <= 1
    mel = log_mel(spoilt, augmenter.filters(5, 1.0, dice))
    assert augmenter.masked(mel, 1.0, dice).isfinite().all()


def test_filters_are_those_of_the_shipped_front_end() -> None:
    from aula.models.whisper_mel import mel_filters as shipped

    np.testing.assert_allclose(mel_filters().numpy().T, shipped(BINS), atol=2e-6)


@pytest.mark.parametrize("samples", [1, 15999, 80000])
def test_batches_are_whole_chunks_and_hold_the_tail(samples: Any) -> None:
    room = padded(samples)
    assert frames(room) % 128 == 0
    assert frames_of(torch.tensor(samples + 2560)) <= frames(room) // 4


def test_opus_keeps_every_sample_in_its_place(tmp_path: Any) -> None:
    tone = (np.sin(np.arange(50000) / 9) * 9000).astype(np.int16)
    clips = [shards.Clip("one", "espeak", 20000), shards.Clip("two", "espeak", 30000)]
    file = shards.write(tmp_path, "a", clips, [tone[:20000], tone[20000:]], opus=True)
    back, flat = shards.read(file)
    assert back == clips
    assert np.corrcoef(flat, tone)[0, 1] > 0.95


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ("It's 1,205 m!", "it's one thousand two hundred and five m"),
        ("the 21st of May 1907", "the twenty first of may nineteen oh seven"),
        ("3.14 is π", None),
        ("Mr. O'Neil — 50%", "mister o'neil fifty percent"),
        ("don’t 'quote' me", "don't quote me"),
    ],
)
def test_text_is_read_as_it_is_said(written: Any, read: Any) -> None:
    assert spelling.said(written) == read


def test_kept_files_name_no_machine() -> None:
    for file in Path("training/recogniser").glob("*.py"):
        assert "/work/" not in file.read_text()
