"""Connectors and recursive LMs of the tests, with their gates opened so that the connector shows."""

import torch

from frozenlm.lm import FrozenLM
from frozenlm.prompts.soft_prompt import SoftPrompt
from frozenlm.recursion.connector import Connector
from frozenlm.recursion.neural import RecursiveLM
from frozenlm.recursion.sizes import ConnectorSizes


def open_connector(lm: FrozenLM, *, opened: float = 0.7, **sizes: object) -> Connector:
    """A fresh connector whose gates alternate between `opened` and -`opened`."""
    connector = Connector.create(lm, ConnectorSizes(**{"heads": 2, **sizes}))
    with torch.no_grad():
        for bridge in connector.bridges:
            bridge.gate.copy_(opened * (-1.0) ** torch.arange(len(bridge.gate)))
    return connector


def open_model(lm: FrozenLM, position: str | None = None, **sizes: object) -> RecursiveLM:
    """A recursive LM with an open connector, and a prompt of 3 vectors at that position."""
    prompt = None if position is None else SoftPrompt.create(lm, 3, position=position)
    return RecursiveLM(lm, open_connector(lm, **sizes), prompt)
