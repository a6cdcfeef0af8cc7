"""a transfer's balance is checked once, when its lines are written"""

from alembic import op

revision = "e83b52d7f016"
down_revision = "7a93c1e0b5d8"

# The lines of a transfer are written by one statement. A trigger for each of them, at the commit, was the dearest part
# of a call's transactions.
BY_STATEMENT = """
DROP TRIGGER ledger_postings_balanced ON ledger_postings;
DROP FUNCTION refuse_unbalanced_transfer();
CREATE FUNCTION refuse_unbalanced_transfer() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    unbalanced text;
BEGIN
    SELECT transfer_id INTO unbalanced FROM written GROUP BY transfer_id HAVING sum(amount_micros) <> 0 LIMIT 1;
    IF FOUND THEN
        RAISE EXCEPTION 'ledger transfer % does not sum to 0', unbalanced;
    END IF;
    RETURN NULL;
END $$;
CREATE TRIGGER ledger_postings_balanced AFTER INSERT ON ledger_postings REFERENCING NEW TABLE AS written
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_unbalanced_transfer();
"""

BY_LINE = """
DROP TRIGGER ledger_postings_balanced ON ledger_postings;
DROP FUNCTION refuse_unbalanced_transfer();
CREATE FUNCTION refuse_unbalanced_transfer() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF (SELECT sum(amount_micros) FROM ledger_postings WHERE transfer_id = NEW.transfer_id) <> 0 THEN
        RAISE EXCEPTION 'ledger transfer % does not sum to 0', NEW.transfer_id;
    END IF;
    RETURN NULL;
END $$;
CREATE CONSTRAINT TRIGGER ledger_postings_balanced AFTER INSERT ON ledger_postings
    DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION refuse_unbalanced_transfer();
"""


def upgrade() -> None:
    op.execute(BY_STATEMENT)


def downgrade() -> None:
    op.execute(BY_LINE)
