"""The tab "Medic" of TensorBoard: the page of each run, as far as it has got, beside TensorBoard's own dashboards.

Everything is read through TensorBoard's data provider, so it works with every one of its ways of loading files; the
scripts and styles are those of the page and lie in the package. Imports tensorboard, and never torch.
"""

import json
import mimetypes
import zlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from tensorboard.backend import http_util  # type: ignore[import-untyped]
from tensorboard.data.provider import RunTagFilter  # type: ignore[import-untyped]
from tensorboard.plugins import base_plugin  # type: ignore[import-untyped]
from werkzeug import wrappers

from trainmedic.reports.page import SCRIPTS, STYLES, asset
from trainmedic.reports.picture import STATES
from trainmedic.reports.tensorboard import PICTURE_TAG, PLUGIN, STATE_TAG
from trainmedic.reports.wording import printable

App = Callable[..., Iterable[bytes]]

SHOWN = (*STYLES, *SCRIPTS, "plugin.js")
MOST_BYTES = 64_000_000
"""A run that unpacks to more was not written by this package."""


class MedicPlugin(base_plugin.TBPlugin):  # type: ignore[misc]
    """Named by the entry point ``tensorboard_plugins`` of this package, and loaded by TensorBoard."""

    plugin_name = PLUGIN

    def __init__(self, context: Any) -> None:
        super().__init__(context)
        self._provider = context.data_provider

    def get_plugin_apps(self) -> dict[str, App]:
        """Paths below ``data/plugin/medic``, and what answers them."""
        assets: dict[str, App] = {f"/{name}": _Asset(name) for name in SHOWN}
        answers = {"/runs": self._answer_runs, "/run": self._answer_run}
        return {**{path: wrappers.Request.application(answer) for path, answer in answers.items()}, **assets}

    def is_active(self) -> bool:
        """Whether there is something to show; asked often, so TensorBoard finds out by ``data_plugin_names``."""
        return False

    def frontend_metadata(self) -> Any:
        """Where the tab begins, and what it is called."""
        return base_plugin.FrontendMetadata(es_module_path="/plugin.js", tab_name="Medic")

    def _answer_runs(self, request: wrappers.Request) -> Any:
        """The names of all runs that this plugin has something of."""
        return _json(request, self.runs(_experiment(request), _context(request)))

    def _answer_run(self, request: wrappers.Request) -> Any:
        """The newest picture of the run that the query names."""
        try:
            return _json(request, self.run(request.args.get("run", ""), _experiment(request), _context(request)))
        except LookupError as error:
            return _json(request, {"error": str(error)}, code=404)
        except ValueError as error:
            return _json(request, {"error": str(error)}, code=422)

    def runs(self, experiment: str, context: Any) -> list[dict[str, str]]:
        """Names of runs, in order, each with its state (see :func:`trainmedic.reports.picture.state`)."""
        found = self._read(experiment, context, RunTagFilter(tags=[STATE_TAG]))
        states = {name: tags[STATE_TAG][-1].numpy.item() for name, tags in found.items() if tags.get(STATE_TAG)}
        return [{"name": name, "state": _known(states[name])} for name in sorted(states)]

    def run(self, name: str, experiment: str, context: Any) -> dict[str, Any]:
        """The newest document of a run; ``LookupError`` where there is none, ``ValueError`` where it is no such."""
        found = self._read(experiment, context, RunTagFilter(runs=[name], tags=[PICTURE_TAG]))
        written = found.get(name, {}).get(PICTURE_TAG, ())
        if not written:
            raise LookupError(f"there is no run '{printable(name)}' of the medic here")
        return document_from(written[-1].numpy.item(), name)

    def _read(self, experiment: str, context: Any, wanted: Any) -> Mapping[str, Mapping[str, Any]]:
        """The newest value of each tag that is wanted, by run and tag."""
        found: Mapping[str, Mapping[str, Any]] = self._provider.read_tensors(
            context, experiment_id=experiment, plugin_name=PLUGIN, downsample=1, run_tag_filter=wanted
        )
        return found


def _known(state: Any) -> str:
    """A state as this package writes them, whatever stands in the file."""
    text = state.decode(errors="replace") if isinstance(state, bytes) else str(state)
    return text if text in STATES else "unjudged"


def document_from(packed: Any, name: str) -> dict[str, Any]:
    """What :meth:`TensorBoardWriter.write_pictures` packed, whoever wrote it; ``ValueError`` where it is no such."""
    try:
        unpacking = zlib.decompressobj()
        text = unpacking.decompress(packed if isinstance(packed, bytes) else str(packed).encode(), MOST_BYTES)
        if unpacking.unconsumed_tail:
            raise ValueError(f"it is larger than {MOST_BYTES:,} bytes")
        content = json.loads(text)
        if not isinstance(content, Mapping) or not isinstance(content.get("runs"), list):
            raise ValueError("it holds no runs")
        return dict(content)
    except (zlib.error, ValueError, RecursionError) as error:
        raise ValueError(f"what is written of run '{printable(name)}' cannot be read: {error}") from error


class _Asset:
    """Answers with one of the files of the package."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __call__(self, environ: Any, start_response: Any) -> Iterable[bytes]:
        request = wrappers.Request(environ)
        kind = mimetypes.guess_type(self.name)[0] or "text/plain"
        response = http_util.Respond(request, asset(self.name), "text/javascript" if "javascript" in kind else kind)
        return list(response(environ, start_response))


def _context(request: wrappers.Request) -> Any:
    from tensorboard import context  # type: ignore[import-untyped]

    return context.from_environ(request.environ)


def _experiment(request: wrappers.Request) -> str:
    from tensorboard import plugin_util

    return str(plugin_util.experiment_id(request.environ))


def _json(request: wrappers.Request, content: Any, code: int = 200) -> Any:
    return http_util.Respond(request, json.dumps(content), "application/json", code=code)
