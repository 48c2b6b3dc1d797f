"""Collects what a patcher routed, sample by sample, as the entries of the internal-routing JSON."""

import itertools

import orjson

from adaptive_routing.routing.batch import BatchRouting
from adaptive_routing.routing_log.arrays import logged_routing
from adaptive_routing.routing_log.entries import LoggedSample, RoutingStatistics, format_samples


class SampleLogger:
    """Logs by samples of what a `RouterPatcher` routes.

    Between `start_sample_logging` and `end_sample_logging` every forward pass belongs to that sample, padding
    left out. A pass adds its sequences; one that reads on from a key-value cache, as in generating, adds
    tokens to the sequences of the pass before. A context manager, which forgets a sample that an exception
    left open; the logs stay.

    Example:
        with RouterPatcher(model, strategy) as patcher, SampleLogger(patcher) as logger:
            logger.start_sample_logging("mine", text)
            model.generate(**inputs)
            logger.end_sample_logging()
        logger.get_internal_logs()[0]["layers"][0]["expert_counts"]
    """

    def __init__(self, patcher):
        self.patcher = patcher
        self._sample = None
        self.clear_internal_logs()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._close()

    def start_sample_logging(self, sample_id, text_preview):
        """Attribute the forward passes from here on to a sample; one at a time."""
        if self._sample is not None:
            raise RuntimeError(
                f"sample {self._sample['sample_id']} is still open; close it with end_sample_logging() "
                "or forget it with clear_internal_logs()"
            )
        self._sample = {"sample_id": sample_id, "text_preview": text_preview, "sequences": []}
        self.patcher.after_pass.append(self._log_pass)

    def _close(self):
        """End the open sample, and return it; None without one."""
        sample, self._sample = self._sample, None
        if sample is not None:
            self.patcher.after_pass.remove(self._log_pass)
        return sample

    def _log_pass(self, batch, continues):
        """Add a pass to the open sample, whose sequences are lists of `BatchRouting`."""
        batch = batch.replace_tensors([tensor.cpu() for tensor in batch.tensors()])
        sequences = self._sample["sequences"]
        if not continues or len(sequences) < len(batch.lengths):
            sequences.extend([] for _ in batch.lengths)
        bounds = itertools.pairwise(itertools.accumulate(batch.lengths, initial=0))
        for sequence, (start, stop) in zip(sequences[-len(batch.lengths) :], bounds, strict=True):
            sequence.append(batch.tokens(slice(start, stop), (stop - start,)))

    def end_sample_logging(self, loss=None):
        """Close the sample: turn its passes into one log entry.

        Raises:
            RuntimeError: no sample is open, or no forward pass was made since it was opened.
        """
        sample = self._close()
        if sample is None:
            raise RuntimeError("end_sample_logging() without start_sample_logging()")
        if not sample["sequences"]:
            raise RuntimeError(f"sample {sample['sample_id']}: no forward pass was logged")
        parts = [part for sequence in sample["sequences"] for part in sequence]
        lengths = [sum(len(part.counts) for part in sequence) for sequence in sample["sequences"]]
        routing, strategy = BatchRouting.joined(parts, lengths), self.patcher.strategy
        self._statistics.add(routing.experts.numpy(), routing.counts.numpy())
        samples = [LoggedSample(sample["sample_id"], sample["text_preview"], loss, routing.lengths)]
        arrays = logged_routing(samples, routing, strategy)
        self._logs.extend(format_samples(samples, arrays, strategy.min_experts, strategy.max_experts))

    def get_internal_logs(self):
        """Log entries of the samples so far, as the internal-routing file's `samples`: plain JSON values."""
        return [orjson.loads(entry) for entry in self._logs]

    def get_aggregate_stats(self):
        """Aggregate over the samples so far, as the internal-routing file's `aggregate_stats`."""
        aggregate = orjson.dumps(self._statistics.aggregate(), option=orjson.OPT_SERIALIZE_NUMPY)
        return orjson.loads(aggregate)

    def clear_internal_logs(self):
        """Forget all logged samples, an open one too."""
        self._close()
        self._logs = []
        self._statistics = RoutingStatistics(self.patcher.num_layers, self.patcher.num_experts)
