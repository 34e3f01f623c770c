-- The head of a ledger. Every entry moves it: links and policies lock it first, in a statement of its own, so that what
-- is read afterwards sees everything that was committed before; a batch of consents does so where somebody was quicker.

-- name: lock_head :one
SELECT epoch, size, policy, frozen, greatest(recorded_at, clock_timestamp()) AS now
FROM ledger_head
WHERE log_id = $1
FOR UPDATE;

-- name: read_head :one
SELECT epoch, size, policy, frozen, clock_timestamp() AS now
FROM ledger_head
WHERE log_id = $1;

-- name: keep_check :exec
-- The first root secret is the one.
INSERT INTO deployment (id, secret_check) VALUES (1, $1) ON CONFLICT (id) DO NOTHING;

-- name: read_check :one
SELECT secret_check FROM deployment;

-- name: add_tenant :one
-- A new tenant; nothing where the slug is taken.
INSERT INTO tenant (log_id, slug)
SELECT coalesce(max(log_id), 0) + 1, $1 FROM tenant
ON CONFLICT (slug) DO NOTHING
RETURNING log_id;

-- name: add_head :exec
-- Its empty ledger, once.
INSERT INTO ledger_head (log_id) VALUES ($1) ON CONFLICT (log_id) DO NOTHING;

-- name: read_tenant :one
SELECT log_id FROM tenant WHERE slug = $1;
