"""Samples grouped into batches, which become smaller once one does not fit into the device's memory."""

import sys

from adaptive_routing.model.memory import too_little_memory, unless_out_of_memory


def make_batches(samples, batch_tokens, indices=None):
    """Group sample indices into batches of at most `batch_tokens` tokens.

    Samples are sorted by their longest sequence, longest first: the sequences of a batch are alike, and a
    batch that is too large shows at once. A sample's sequences stay together; one that is too large on its
    own is a batch of its own. `indices` are those of the samples to group; all by default.
    """

    def longest(index):
        return max(sequence.num_inputs for sequence in samples[index].sequences)

    batches, tokens = [], 0
    if indices is None:
        indices = range(len(samples))
    for index in sorted(indices, key=lambda index: (-longest(index), index)):
        own = samples[index].num_inputs
        if not batches or tokens + own > batch_tokens:
            batches.append([])
            tokens = 0
        batches[-1].append(index)
        tokens += own
    return batches


class BatchQueue:
    """The batches of a data set that are still to be done, in the order of `make_batches`.

    Where the device's memory runs out, this batch and all after it are grouped anew for half its tokens:
    what one failed attempt has shown is not tried again.

    Args:
        model: the model that does them.
        samples: list of `samples.PreparedSample`.
        batch_tokens: tokens in a batch, at first.
        shorter: the keys that make samples shorter, and of which; for the sentence that says so.
    """

    def __init__(self, model, samples, batch_tokens, shorter):
        self._model, self._samples, self._shorter = model, samples, shorter
        self._batches = make_batches(samples, batch_tokens)

    def __bool__(self):
        return bool(self._batches)

    def attempt(self, work, is_alone=True):
        """Do `work` of the first batch and return its result; the batch stays first until `pop`.

        Where memory runs out the result is None, and the batches are smaller.

        Args:
            work: a function of a batch, a list of sample indices.
            is_alone: whether nothing else that will end is using the device's memory. If not, a batch of one
                sample stays, to be attempted again without it.

        Raises:
            InputError: a single sample does not fit.
        """
        batch = self._batches[0]
        result, said = unless_out_of_memory(lambda: work(batch))
        if said and len(batch) > 1:
            self._halve(batch, said)
        elif said and is_alone:
            raise too_little_memory(self._model, self._samples[batch[0]], said, self._shorter)
        return result

    def last_sample(self):
        """The last sample of all, which is a short one."""
        return self._samples[self._batches[-1][-1]]

    def pop(self):
        """Take the first batch out of the queue."""
        return self._batches.pop(0)

    def _halve(self, batch, said):
        tokens = sum(self._samples[index].num_inputs for index in batch)
        print(
            f"out of memory on {self._model.device} in a batch of {len(batch)} samples, {tokens:,} tokens "
            f"({said}); going on with at most {tokens // 2:,} tokens in a batch",
            file=sys.stderr,
        )
        left = [index for one in self._batches for index in one]
        self._batches = make_batches(self._samples, tokens // 2, left)
