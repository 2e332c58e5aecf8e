"""Buying: `Buyer.purchase(order)` gives a `Resumable` to iterate, and afterwards its opening."""

from deaios.market.buyer.client.buyer import Buyer
from deaios.market.buyer.client.purchase import Delta, Purchase
from deaios.market.buyer.client.resuming import Resumable
from deaios.market.buyer.client.router import DirectoryPort
from deaios.market.buyer.client.settings import BuyerSettings

__all__ = ["Buyer", "BuyerSettings", "Delta", "DirectoryPort", "Purchase", "Resumable"]
