"""Text to text with an encoder-decoder (Sutskever et al., 2014; Raffel et al., 2020): cross-entropy on the tokens of
the target, averaged over those of the global batch, each predicted from the source and the target before it.
"""

from __future__ import annotations

from functools import partial

from tunecli.config.stage import Seq2SeqConfig
from tunecli.stages.setting import Setting
from tunecli.stages.sft import loss, measured
from tunecli.stages.supervised import Supervised


def seq2seq(setting: Setting) -> Supervised:
    assert isinstance(setting.config, Seq2SeqConfig)
    return setting.supervised(loss, partial(measured, setting, setting.evaluator))
