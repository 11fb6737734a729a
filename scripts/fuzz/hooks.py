"""Checks that Schemathesis has not: what this API promises of every problem, and of orders."""

import atexit
import collections
import json
import os

import schemathesis

answers = collections.Counter()


@atexit.register
def tell_what_was_answered():
    """A run that gets nowhere finds nothing; scripts/fuzz-api looks at how far this one got."""
    with open(os.environ["FUZZ_ANSWERS"], "w") as file:
        for (operation, status), count in sorted(answers.items()):
            print(operation, status, count, file=file)


@schemathesis.hook
def before_call(context, case, kwargs):
    """Keeps the sales as scripts/fuzz-api opened them; others may be changed."""
    operation = case.operation.definition.raw["operationId"]
    sale = (case.path_parameters or {}).get("sale_id")
    shops = {
        "closeSale": ("shop-1", "shop-2", "shop-3", "few", "nothing"),
        "restockSale": ("few", "nothing"),
        # There is no user service, so their orders would wait for ever.
        "switchVerification": ("shop-1", "shop-2", "shop-3", "few"),
    }
    if sale in shops.get(operation, ()):
        case.path_parameters["sale_id"] = "closed"
    # Only an order with neither id nor key is refused by the state of its sale; few are made at random.
    valid = case.meta is not None and not case.meta.generation.mode.is_negative
    if operation == "placeOrder" and sale == "future" and valid and isinstance(case.body, dict):
        case.body.pop("order_id", None)
        (case.headers or {}).pop("Idempotency-Key", None)


@schemathesis.check
def problems_are_whole(ctx, response, case):
    """Every refusal is a problem document that tells of itself."""
    operation = case.operation.definition.raw["operationId"]
    answers[operation, response.status_code] += 1
    if response.status_code < 400:
        return
    kind = response.headers.get("content-type", [""])[0]
    assert kind == "application/problem+json", f"a refusal as {kind!r}"
    problem = response.json()
    assert "/problems/" in problem["type"], problem
    assert problem["status"] == response.status_code, problem
    assert problem["detail"], problem
    if response.status_code in (429, 503):
        assert "retry-after" in response.headers, "no Retry-After"
    if response.status_code == 401:
        assert "www-authenticate" in response.headers, "no WWW-Authenticate"


@schemathesis.serializer("application/x-ndjson")
def ndjson(context, value):
    """A batch of one line."""
    return json.dumps(value).encode() + b"\n"


# What a schema can't say: an id stands for one order; a key that becomes the order id must be one; a
# sale closes after it opens, and offers no more than 2^32 - 1 units; what is sent again is named in one of two ways.
BEYOND_THE_SCHEMA = (
    "order_id and Idempotency-Key differ",
    "was posted before for another user or quantity",
    "Idempotency-Key becomes the order id",
    "the sale closes at",
    "a sale can't offer more than",
    "either sale_id or since",
)


@schemathesis.check
def valid_requests_are_refused_for_what_a_schema_cannot_say(ctx, response, case):
    """Data that is as described is never refused as malformed."""
    if case.meta is None or case.meta.generation.mode.is_negative:
        return
    if response.status_code in (400, 422):
        detail = response.json()["detail"]
        assert any(reason in detail for reason in BEYOND_THE_SCHEMA), detail
