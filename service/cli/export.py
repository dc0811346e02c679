"""`attend export`: SOURCE to a bundle."""

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from model.precision import DEFAULT_PRECISION
from service.cli.options import PATH, PRECISIONS, TEXT, CacheDir
from service.cli.progress import stages
from service.settings import default_cache_dir
from service.source import check_can_export

DEVICES = "[cpu]"  # what model.bundle_writer.DEVICES offers, which is loaded with the exporter only


def export(
    source: Annotated[
        str, typer.Argument(metavar="SOURCE", help="`default`, a Hugging Face folder, a .gguf file, or hf:org/name.")
    ],
    out: Annotated[
        Path | None, typer.Option(metavar=PATH, help="Bundle folder; left out: one in the cache, which is printed.")
    ] = None,
    precision: Annotated[
        str, typer.Option(metavar=PRECISIONS, help="How exactly the weights are kept.")
    ] = DEFAULT_PRECISION,
    device: Annotated[str, typer.Option(metavar=DEVICES, help="Where the bundle will run.")] = "cpu",
    model_id: Annotated[
        str | None, typer.Option(metavar=TEXT, help="Name to serve it under; default: from SOURCE.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace another bundle in the folder.")] = False,
    cache_dir: CacheDir = None,
    print_path: Annotated[bool, typer.Option("--print-path", help="Print the bundle's folder and no more.")] = False,
) -> None:
    """Turn a checkpoint into a bundle; an up-to-date one is reused."""
    check_can_export()
    from model.bundle_cache import cached_bundle_path
    from model.bundle_writer import ExportRequest, export_bundle

    cache_dir = cache_dir or default_cache_dir()
    request = ExportRequest(source, out or Path(), precision, device, model_id, force=force)
    with stages() as say:
        out = out or cached_bundle_path(source, precision, cache_dir, say, model_id=model_id)
        bundle = export_bundle(replace(request, out=out), cache_dir, say)
    if print_path:
        print(bundle.path)
        return
    size_mb = sum(file.stat().st_size for file in bundle.path.iterdir()) / 1e6
    print(f"{bundle.path}: {bundle.config.model_id}, {precision}, {size_mb:.0f} MB, licence {bundle.manifest.licence}")
