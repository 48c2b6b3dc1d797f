# Evaluates adaptive expert routing in a mixture-of-experts language model: every routing configuration
# on every data set, to metrics, figure and report. Settings: config.yaml. Helper functions: rules/common.smk.

from snakemake.utils import min_version

min_version("9.10")


configfile: "config.yaml"


include: "rules/common.smk"


if not IS_IMPORTED:  # an importing workflow's report begins with its own words

    if any(word.startswith("--report") for word in sys.argv):  # its front page

        config = SETTINGS | front_page()

    report: "report/workflow.rst"


include: "rules/data.smk"
include: "rules/calibration.smk"
include: "rules/experiments.smk"
include: "rules/metrics.smk"
include: "rules/figures.smk"
include: "rules/atlas.smk"
include: "rules/report.smk"
include: "rules/collect.smk"


rule all:
    default_target: True
    input:
        *STAGES.values(),


onstart:
    keep_devices_busy()
    say_what_is_asked()
    tell_what_is_planned()
    start_model_host()


onsuccess:
    print_answer()


onerror:
    print_how_to_go_on()
