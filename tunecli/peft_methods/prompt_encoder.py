"""Rows that are trained in a prompt's stead: as they are, or as what a small network makes of an embedding.

- none: the rows themselves (Lester et al., 2021; Liu et al., 2022, P-tuning v2).
- mlp: an embedding, a hidden layer with tanh, a linear layer (Li & Liang, 2021, prefix tuning).
- lstm: an embedding, a two-layer bidirectional LSTM, two linear layers with a ReLU between (Liu et al., 2021,
  P-tuning).

The network is needed in training only: a result keeps the rows alone.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

LSTM_LAYERS = 2


class PromptEncoder(nn.Module):
    """Calling it gives [num_rows, width] in fp32."""

    def __init__(
        self,
        num_rows: int,
        width: int,
        kind: str,
        *,
        hidden_size: int | None = None,
        device: torch.device | None = None,
    ) -> None:
        """
        Args:
            kind: none | mlp | lstm.
            hidden_size: of the mlp's hidden layer, or of both directions of the LSTM together; None: `width`.
        """
        super().__init__()
        new = {"device": device, "dtype": torch.float32}
        hidden = hidden_size or width
        self.kind = kind
        self.embedding = nn.Parameter(torch.empty(num_rows, width, **new))
        if kind == "none":
            nn.init.uniform_(self.embedding, -0.5, 0.5)  # as Lester et al. do
        else:
            nn.init.normal_(self.embedding)  # as the papers' code does: of small ones an LSTM makes almost equal rows
        if kind == "mlp":
            self.network = nn.Sequential(nn.Linear(width, hidden, **new), nn.Tanh(), nn.Linear(hidden, width, **new))
        elif kind == "lstm":
            self.lstm = nn.LSTM(width, hidden // 2, LSTM_LAYERS, bidirectional=True, batch_first=True, **new)
            both = 2 * (hidden // 2)
            self.network = nn.Sequential(nn.Linear(both, both, **new), nn.ReLU(), nn.Linear(both, width, **new))

    def forward(self) -> Tensor:
        if self.kind == "none":
            return self.embedding
        if self.kind == "mlp":
            return self.network(self.embedding)
        return self.network(self.lstm(self.embedding[None])[0][0])

    def plain_state(self) -> dict[str, Tensor]:
        """What is left of the parameters when training is over."""
        return {"embedding": self().detach()}
