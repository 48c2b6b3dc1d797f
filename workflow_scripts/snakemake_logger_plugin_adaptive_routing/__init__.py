"""What a run shows on its terminal: the Snakemake logger plugin `adaptive-routing` of profiles/default.

Snakemake finds it by the folder's name. Every Snakemake process imports it, whether it uses it or not; so
nothing of weight is imported here. Nothing in this folder imports the package `adaptive_routing`: the
workflow chooses later which checkout it is of.

- On a terminal a run shows one picture (`picture`, drawn by `screen`), redrawn in place.
- Elsewhere it writes a line for each finished experiment and stage.
- What jobs write to their terminal is caught (`capture`) while a run lasts: their logs have it.
  What no log or picture shows comes out as lines above the picture.
- Dry runs, and runs with `--verbose`, say what Snakemake says, with two lines a job.
"""

import importlib.util
import sys
from pathlib import Path

from snakemake_interface_logger_plugins.base import LogHandlerBase


def _check_config_files():
    """End with one sentence where a config file cannot be read.

    Here, since Snakemake makes its loggers, then reads config files, and only then the workflow's code.
    """
    if Path(sys.argv[0]).name not in ("snakemake", "__main__.py"):
        return
    path = Path(__file__).parents[1] / "adaptive_routing/settings/config_files.py"
    spec = importlib.util.spec_from_file_location("adaptive_routing_config_files", path)
    config_files = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(config_files)
    named = list(config_files.named_config_files(sys.argv[1:]))
    if Path("config.yaml").is_file() and not {"-d", "--directory"} & set(sys.argv):
        named.insert(0, "config.yaml")  # which the Snakefile names
    for name in named:
        try:
            config_files.check_config_file(name)
        except config_files.ConfigFileError as error:
            sys.exit(f"error: {error}")


class LogHandler(LogHandlerBase):
    """Hands Snakemake's records to what shows them."""

    def __post_init__(self):
        _check_config_files()
        from snakemake_logger_plugin_adaptive_routing.plan import Plan
        from snakemake_logger_plugin_adaptive_routing.run import Run

        settings, self._is_closed = self.common_settings, False
        if settings.dryrun or settings.verbose or settings.debug_dag:
            self._shown_by = Plan(settings)
        else:
            self._shown_by = Run(settings)

    def emit(self, record):
        try:
            self._shown_by.take(record)
        except Exception:  # a record that cannot be shown is no reason to end a run
            self.handleError(record)

    def close(self):
        if not self._is_closed:  # Snakemake closes its handlers, and `logging` closes all at the end
            self._is_closed = True
            self._shown_by.close()
        super().close()

    @property
    def writes_to_stream(self):
        return True

    @property
    def writes_to_file(self):
        return False

    @property
    def has_filter(self):
        return True

    @property
    def has_formatter(self):
        return True

    @property
    def needs_rulegraph(self):
        return False
