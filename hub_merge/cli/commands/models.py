"""Between adapters and full models."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from hub_merge.cli.framework import command
from hub_merge.cli.options import (
    accept_unknown_license_option,
    allow_option,
    client,
    force_option,
    output_option,
    output_options,
    token_option,
)
from hub_merge.cli.output import Output

__all__ = ["extract", "fuse"]


@command(
    examples=[
        "fuse ./math-medicine -o full",
        "fuse me/math-medicine --base HuggingFaceTB/SmolLM2-135M-Instruct -o full --push me/math-medicine-full",
    ]
)
@click.argument("adapter", metavar="COMPOSITE")
@click.option("--base", metavar="MODEL", help="Full model: a Hub id or a folder.  [default: the one it states]")
@output_option
@click.option("--push", "repo_id", metavar="OWNER/NAME", help="Publish the model too, as one commit.")
@click.option(
    "--private/--no-private",
    default=None,
    help="Visibility of a new repository.  [default: private if a source is gated or private]",
)
@accept_unknown_license_option
@allow_option
@click.option("--force", is_flag=True, help="Replace the folder if it holds a fused model.")
@token_option
@output_options
def fuse(
    out: Output,
    output: Path,
    repo_id: str | None,
    private: bool | None,
    accept_unknown_license: bool,
    token: str | None,
    **asked: Any,
) -> None:
    """Fold a composite into its base, which gives a full model.

    COMPOSITE is any adapter that can be merged. Tensors stream through in blocks, so a model larger than memory can be
    fused; each weight keeps its dtype, tokenizer and licence files are carried over, and what was written is read again
    and compared.
    """
    from hub_merge.cli.show.models import print_fusion
    from hub_merge.cli.show.publication import print_published
    from hub_merge.fusion import fuse as fuse_adapter
    from hub_merge.fusion import push_fused

    hub = client(out, token)
    record = fuse_adapter(output=output, hub=hub, progress=out.progress(), **asked)
    if repo_id is None:
        print_fusion(out, output, record)
    else:
        published = push_fused(output, repo_id, hub=hub, private=private, accept_unknown_license=accept_unknown_license)
        print_published(out, published, dry_run=False)


@command(
    examples=[
        "extract me/tuned-model HuggingFaceTB/SmolLM2-135M-Instruct --rank 16 -o lora",
        "extract ./tuned ./base --rank 64 --energy 0.9 --exclude lm_head -o lora",
    ]
)
@click.argument("tuned")
@click.argument("base")
@click.option("--rank", required=True, metavar="N", type=click.IntRange(1), help="Largest rank of the adapter.")
@click.option(
    "--energy",
    metavar="SHARE",
    type=click.FloatRange(0, 1, min_open=True),
    help="Take the smallest rank that keeps this share of the squared norm.",
)
@click.option("--include", multiple=True, metavar="PART", help="Only modules with this in their name; repeatable.")
@click.option("--exclude", multiple=True, metavar="PART", help="No modules with this in their name; repeatable.")
@output_option
@click.option(
    "--dtype",
    type=click.Choice(["float32", "bfloat16", "float16"]),
    default="float32",
    show_default=True,
    help="Dtype of the adapter.",
)
@click.option(
    "--seed", metavar="N", type=click.IntRange(0), default=0, show_default=True, help="Seed of random choices."
)
@force_option
@token_option
@output_options
def extract(out: Output, output: Path, token: str | None, **asked: Any) -> None:
    """Extract a LoRA adapter from a tuned full model and its base.

    It is the closest of its rank to the difference, module by module. How much it keeps, and what it cannot hold, is
    told; embeddings, norms and biases are not carried.
    """
    from hub_merge.cli.show.models import print_extraction
    from hub_merge.extraction import extract as extract_adapter

    print_extraction(
        out, output, extract_adapter(output=output, hub=client(out, token), progress=out.progress(), **asked)
    )
