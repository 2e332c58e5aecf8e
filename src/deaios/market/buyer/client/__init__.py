"""Buying: `Buyer.purchase(order)` gives a `Purchase` to iterate, and afterwards its opening."""

from deaios.market.buyer.client.buyer import Buyer, DirectoryPort
from deaios.market.buyer.client.purchase import Delta, Purchase
from deaios.market.buyer.client.settings import BuyerSettings

__all__ = ["Buyer", "BuyerSettings", "Delta", "DirectoryPort", "Purchase"]
