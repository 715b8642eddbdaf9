"""`nitrodistill pairs ACTION`: what one does with finished stores.

Work with stores of pairs. `nitrodistill pairs ACTION --help` explains an action, with an example:

  verify   read a whole store, and compare every file with its hash and every row with its checksum
  stats    say what a store holds: sizes, prompts, values, and what its encodings lost
  merge    copy several stores into a new one
  import   read what another program made: Nitro's folders of .pth files, or images with captions
  push     upload a store to the Hub

A store is a folder that `generate`, `encode` or `pairs import` wrote.

example:
  nitrodistill pairs verify runs/pairs
  nitrodistill pairs merge runs/pairs runs/more --output runs/all
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from nitrodistill.cli.arguments import Parser, parse, read_config, refuse
from nitrodistill.cli.terminal import results, say
from nitrodistill.settings import nearest

if TYPE_CHECKING:
    from nitrodistill.data import Statistics


def main(argv: Sequence[str]) -> int:
    """Runs the verb; see `nitrodistill pairs --help`."""
    if not argv or argv[0] in ("-h", "--help"):
        print(
            Parser("pairs", __doc__)
            .format_help()
            .replace("pairs [options]", "pairs ACTION [options]")
        )
        return 0 if argv else 2
    action = argv[0]
    if action not in ACTIONS:
        raise ValueError(f"pairs has no action {action!r}; {nearest(action, ACTIONS)}")
    return ACTIONS[action](argv[1:])


def _verify(argv: Sequence[str]) -> int:
    """Read a whole store. Every file is compared with its hash, every row with its checksum, and drawn
    noise with what the teacher saw. Damage is an error that names the file, with exit code
    2; the command that made the store repairs it.

    example:
      nitrodistill pairs verify runs/pairs
    """
    from nitrodistill.data import PairStore

    parser = Parser("pairs verify", _verify.__doc__)
    parser.add("store", "folder of the store")
    given = parse(parser, argv)
    store = PairStore.open(given.store)
    store.verify(progress=not given.quiet)
    results(store=given.store, is_whole=True, samples=len(store), prompts=len(store.prompts))
    say(f"{given.store} is whole: {len(store)} samples of {len(store.prompts)} prompts.")
    return 0


def _stats(argv: Sequence[str]) -> int:
    """Say what a store holds: how its samples were made, sizes, token counts, the values of latents and
    noise, and what int8 embeddings and drawn noise lost. Standard deviations far from 1 hint at a
    missing scaling factor.

    example:
      nitrodistill pairs stats runs/pairs
      nitrodistill pairs stats runs/pairs --json
    """
    from nitrodistill.data import PairStore, statistics

    parser = Parser("pairs stats", _stats.__doc__)
    parser.add("store", "folder of the store")
    given = parse(parser, argv)
    store = PairStore.open(given.store)
    found = statistics(store)
    sources = store.manifest.to_dict()["sources"]
    results(**dataclasses.asdict(found), sources=sources)
    for source in sources:
        named = (f"{k} {v}" for k, v in source.items() if k in _SHOWN)
        say(f"{source['kind']:<12}{', '.join(named)}")
    say(_summary(found), lines=True)
    return 0


_SHOWN = (
    "num_samples",
    "teacher",
    "num_inference_steps",
    "guidance",
    "seed",
    "image_size",
    "format",
)


def _summary(found: Statistics) -> str:
    lines = [
        f"samples     {found.samples} of {found.prompts} prompts in {found.files} files",
        f"bytes       {found.size_bytes:,}, {found.size_bytes / found.samples:,.0f} a sample",
    ]
    for name, values in found.values.items():
        lines.append(
            f"{name:<12}mean {values.mean:.4f}, std {values.std:.4f}, from {values.low:.3g} to "
            f"{values.high:.3g} ({found.looked_at} samples)"
        )
    for name, quantiles in found.tokens.items():
        least, few, middle, many, most = quantiles
        lines.append(f"tokens      {middle} ({few} to {many} in 80%, {least} to {most}) in {name}")
    for name, (mean, largest) in found.int8_error.items():
        lines.append(f"int8        {name}: relative error {mean:.2%}, at most {largest:.2%}")
    if found.noise_error is not None:
        lines.append(f"drawn noise differs by {found.noise_error:.2g} from what was seen, at most")
    return "\n".join(lines)


def _merge(argv: Sequence[str]) -> int:
    """Copy several stores into a new one, bit for bit. Prompts that are the same are kept once. The stores
    must have equal shapes, dtypes, encodings and text encoders. The same command goes on with a copy
    that was stopped.

    example:
      nitrodistill pairs merge runs/pairs runs/more --output runs/all
    """
    from nitrodistill.data import PairStore, merge

    parser = Parser("pairs merge", _merge.__doc__)
    parser.add("stores", "folders of the stores, in order", list[str])
    parser.add("--output", "folder of the new store")
    given = parse(parser, argv)
    stores = [PairStore.open(path) for path in given.stores]
    store = merge(stores, given.output, progress=not given.quiet)
    results(output=given.output, samples=len(store), prompts=len(store.prompts))
    say(f"{len(store)} samples of {len(store.prompts)} prompts in {given.output}")
    return 0


def _import(argv: Sequence[str]) -> int:
    """Read what another program made into a store. A folder with latents/, noises/ and txt_embs/ is taken
    for Nitro's: three .pth files a sample, read without running any pickled code; --teacher must be the
    teacher that made them. Anything else is taken for images with captions, a folder or tar files of
    webdataset, and encoded as by `nitrodistill encode`, which has more options.

    example:
      nitrodistill pairs import generated_data --teacher ./pixart --prompts prompts.txt --output runs/pairs
      nitrodistill pairs import photos --teacher ./pixart --output runs/real
    """
    from nitrodistill.data import NitroConfig, NitroImport, complete, read_lines
    from nitrodistill.data.nitro import is_nitro

    parser = Parser("pairs import", _import.__doc__, NitroConfig)
    parser.add("path", "folder or tar file")
    parser.add("--output", "folder of the new store")
    parser.add("--teacher", "the teacher that made the samples, or encodes them", default="toy")
    parser.add(
        "--prompts",
        "Nitro's prompt file: sample N is its line N, from 0; without it the texts are lost",
        str | None,
    )
    given = parse(parser, argv)
    if not is_nitro(given.path):
        names = ("prompts", "num_inference_steps", "guidance")
        refuse(given, names, f"{given.path!r} is no folder of Nitro's, and images have captions")
        from nitrodistill.cli import encode

        options = (
            "dtype",
            "embeddings",
            "shard_size",
            "teacher",
            "output",
            "batch_size",
            "log_level",
        )
        more = [f"--{name}={getattr(given, name)}" for name in options]
        more += [f"--{name}" for name in ("quiet", "json") if getattr(given, name)]
        return encode.main([f"--images={given.path}", *more])
    config = read_config(given, NitroConfig)
    prompts = None if given.prompts is None else read_lines(given.prompts)

    from nitrodistill.models.pipeline import fingerprint
    from nitrodistill.teachers import load_teacher

    denoiser = load_teacher(given.teacher).denoiser
    teacher = (given.teacher, fingerprint(denoiser.module), denoiser.prediction_type)
    work = NitroImport(given.path, given.output, config, teacher, prompts)
    store = complete(work, progress=not given.quiet)
    results(output=given.output, samples=len(store), prompts=len(store.prompts))
    say(f"{len(store)} samples of {len(store.prompts)} prompts in {given.output}")
    return 0


def _push(argv: Sequence[str]) -> int:
    """Verify a store and upload it to a dataset repository of the Hub, with a card that says how it was
    made. Log in before with `hf auth login`. A broken upload can be repeated; what is there is not sent
    again.

    example:
      nitrodistill pairs push runs/pairs my-name/my-pairs
    """
    from nitrodistill.data import PairStore
    from nitrodistill.data.push import push_store

    parser = Parser("pairs push", _push.__doc__)
    parser.add("store", "folder of the store")
    parser.add("repo", "user/name")
    parser.add("--public", "a new repository is public", bool)
    given = parse(parser, argv)
    say("verifying ...", sys.stderr)
    address = push_store(PairStore.open(given.store), given.repo, private=not given.public)
    results(pushed=address)
    say(address)
    return 0


ACTIONS: dict[str, Callable[[Sequence[str]], int]] = {
    "verify": _verify,
    "stats": _stats,
    "merge": _merge,
    "import": _import,
    "push": _push,
}
