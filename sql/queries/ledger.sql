-- The head of a ledger. Every entry moves it: links and policies lock it first, in a statement of its own, so that what
-- is read afterwards sees everything that was committed before; a batch of consents does so where somebody was quicker.

-- name: lock_head :one
SELECT epoch, size, policy, frozen, greatest(recorded_at, clock_timestamp()) AS now, frontier
FROM ledger_head
WHERE log_id = $1
FOR UPDATE;

-- name: read_tip :one
SELECT epoch, size, policy, frozen, clock_timestamp() AS now, frontier
FROM ledger_head
WHERE log_id = $1;

-- name: read_head :one
SELECT epoch, size, policy, frozen, clock_timestamp() AS now
FROM ledger_head
WHERE log_id = $1;

-- name: keep_check :exec
-- The first root secret is the one.
INSERT INTO deployment (id, secret_check) VALUES (1, $1) ON CONFLICT (id) DO NOTHING;

-- name: read_check :one
SELECT secret_check FROM deployment;

-- name: append :one
-- Entries at the end of a ledger whose head is held.
WITH head AS (
    UPDATE ledger_head SET size = $2 + cardinality($5::bytea[]), frontier = $4, recorded_at = $3
    WHERE log_id = $1 AND size = $2
    RETURNING log_id
), entries AS (
    INSERT INTO ledger_entry (log_id, idx, entry)
    SELECT h.log_id, $2 + n - 1, entry FROM head h CROSS JOIN unnest($5::bytea[]) WITH ORDINALITY AS e (entry, n)
)
SELECT count(*) AS heads FROM head;

-- name: add_event :exec
-- An event that is no consent; its entry is appended beside it.
INSERT INTO event (log_id, idx, event, kind, identifier, tenure, sequence, purposes, statuses, credential, grade,
                   recorded_at, link, payload)
VALUES ($1, $2, $3, $4, $5, $6, $7, '{}', $8, $9, $10, $11, $12, $13);

-- name: count_event :one
-- Another event of a strand: its place there, and what seals it.
UPDATE strand SET events = events + 1
WHERE log_id = $1 AND identifier = $2 AND tenure = $3
RETURNING events, namespace, key, value;

-- name: add_tenant :one
-- A new tenant; nothing where the slug is taken.
INSERT INTO tenant (log_id, slug)
SELECT coalesce(max(log_id), 0) + 1, $1 FROM tenant
ON CONFLICT (slug) DO NOTHING
RETURNING log_id;

-- name: add_head :exec
-- Its empty ledger, once.
INSERT INTO ledger_head (log_id, origin) VALUES ($1, $2) ON CONFLICT (log_id) DO NOTHING;

-- name: read_tenant :one
SELECT log_id FROM tenant WHERE slug = $1;

-- name: read_origin :one
SELECT origin FROM ledger_head WHERE log_id = $1;

-- name: read_entries :many
-- Entries from $2 up to but without $3.
SELECT idx, entry FROM ledger_entry WHERE log_id = $1 AND idx >= $2 AND idx < $3 ORDER BY idx;

-- name: read_tiles :many
SELECT level, n, hashes FROM ledger_tile
WHERE log_id = $1 AND (level, n) IN (SELECT * FROM unnest($2::smallint[], $3::bigint[]));

-- name: read_roots :many
-- Of full tiles of one level, from $3 up to but without $4.
SELECT n, root FROM ledger_tile WHERE log_id = $1 AND level = $2 AND n >= $3 AND n < $4 ORDER BY n;

-- name: add_tile :exec
INSERT INTO ledger_tile (log_id, level, n, root, hashes) VALUES ($1, $2, $3, $4, $5)
ON CONFLICT (log_id, level, n) DO NOTHING;

-- name: count_tiles :one
-- How many full tiles of a level are stored: they are stored in order.
SELECT coalesce(max(n) + 1, 0) AS tiles FROM ledger_tile WHERE log_id = $1 AND level = $2;

-- name: read_opening :one
-- What shows that an entry is about an event.
SELECT event, sequence, payload FROM event WHERE log_id = $1 AND idx = $2;
