"""All tables, so that foreign keys resolve whichever part of the store is imported first."""

import app.accounts.tables
import app.billing.tables
import app.catalog.tables
import app.files.tables
import app.fine_tuning.tables
import app.idempotency
import app.reviews.tables
import app.variants.tables  # noqa: F401
from app.database import Base

metadata = Base.metadata
