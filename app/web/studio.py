"""What one has: models trained or brought, listings on sale, and what was bought."""

from fastapi import APIRouter
from starlette.responses import Response

from app.billing.purchase import list_purchases
from app.catalog.find import describe, list_own_listings, listing_addresses
from app.dependencies import Transaction
from app.variants.variants import list_variants
from app.web.visitors import SignedIn

router = APIRouter()
MOST = 100


@router.get("/models")
def read_models(member: SignedIn, tx: Transaction) -> Response:
    purchases = list_purchases(tx, member.account_id, None, MOST)[:MOST]
    return member.show(
        "models",
        models=list_variants(tx, member.account_id),
        listings=[describe(tx, row, member.account_id) for row in list_own_listings(tx, member.account_id)],
        purchases=purchases,
        addresses=listing_addresses(tx, [purchase.listing_id for purchase in purchases]),
    )
