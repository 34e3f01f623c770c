-- The head of a ledger. Every entry moves it: links and policies lock it first, in a statement of its own, so that what
-- is read afterwards sees everything that was committed before; a batch of consents does so where somebody was quicker.

-- name: lock_head :one
SELECT epoch, size, policy, frozen, first_key, last_key, greatest(recorded_at, clock_timestamp()) AS now, frontier
FROM ledger_head
WHERE log_id = $1
FOR UPDATE;

-- name: read_head :one
SELECT epoch, size, policy, frozen, first_key, last_key, clock_timestamp() AS now
FROM ledger_head
WHERE log_id = $1;

-- name: keep_check :exec
-- The first root secret is the one, and so is the first key-encryption key until it is rotated.
INSERT INTO deployment (id, secret_check, kek) VALUES (1, $1, $2) ON CONFLICT (id) DO NOTHING;

-- name: read_check :one
SELECT secret_check, kek FROM deployment;

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

-- name: read_strand :one
-- The current strand of an identifier.
SELECT tenure, namespace, key, value
FROM strand
WHERE log_id = $1 AND identifier = $2
ORDER BY tenure DESC
LIMIT 1;

-- name: add_strand :exec
INSERT INTO strand (log_id, identifier, tenure, namespace, key, value, events) VALUES ($1, $2, $3, $4, $5, $6, 0);

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

-- name: read_shown :one
-- The latest checkpoint that was published in an epoch.
SELECT size, note FROM checkpoint
WHERE log_id = $1 AND epoch = $2 AND published_at IS NOT NULL
ORDER BY size DESC
LIMIT 1;

-- name: read_publication :one
-- All that publishing a ledger goes by: its head, what a frozen one has to show, and how far it was published.
SELECT h.epoch, h.size, h.policy, h.frozen, h.first_key, h.last_key, clock_timestamp() AS now, h.frontier, h.demanded,
       coalesce((SELECT max(size) FROM checkpoint
                 WHERE log_id = $1 AND epoch = h.epoch AND published_at IS NOT NULL), 0) AS published,
       (SELECT published_at FROM checkpoint WHERE log_id = $1 AND timestamp IS NOT NULL
        ORDER BY published_at DESC LIMIT 1) AS dated_at
FROM ledger_head h
WHERE h.log_id = $1;

-- name: read_slugs :many
SELECT log_id, slug FROM tenant ORDER BY log_id;

-- name: read_slug :one
SELECT log_id, slug FROM tenant WHERE log_id = $1;

-- name: freeze :one
-- No writes from now on, until the ledger begins with the checkpoint $3 again. Not if it was frozen, or thawed, since it
-- demanded $4.
UPDATE ledger_head SET frozen = $2, demanded = $3 WHERE log_id = $1 AND demanded IS NOT DISTINCT FROM $4
RETURNING log_id;

-- name: take_unlogged :many
-- What was done to keys while the ledger was frozen, and is about to become entries.
WITH found AS (
    SELECT id, unnest(unlogged) AS change FROM credential WHERE log_id = $1 AND unlogged <> '{}'
), taken AS (
    UPDATE credential SET unlogged = '{}' WHERE log_id = $1 AND unlogged <> '{}'
)
SELECT id, change FROM found;

-- name: thaw :one
-- Not if something else is demanded by now than $2.
UPDATE ledger_head SET frozen = NULL, demanded = NULL WHERE log_id = $1 AND demanded IS NOT DISTINCT FROM $2
RETURNING log_id;

-- name: claim_checkpoint :one
-- Whoever adds the row publishes it. Not while another one was begun within the last $5 seconds; one whose process
-- ended is taken over.
INSERT INTO checkpoint (log_id, epoch, size, note)
SELECT $1, $2, $3, $4
WHERE NOT EXISTS (
    SELECT FROM checkpoint
    WHERE log_id = $1 AND epoch = $2 AND size <= $3 AND claimed_at > clock_timestamp() - make_interval(secs => $5)
)
ON CONFLICT (log_id, epoch, size) DO UPDATE SET claimed_at = clock_timestamp(), note = excluded.note
WHERE checkpoint.published_at IS NULL
RETURNING size;

-- name: show_checkpoint :exec
UPDATE checkpoint SET note = $4, timestamp = $5, published_at = clock_timestamp()
WHERE log_id = $1 AND epoch = $2 AND size = $3;

-- name: rotate_keys :exec
UPDATE ledger_head SET first_key = $2, last_key = $3 WHERE log_id = $1;

-- name: begin_epoch :exec
UPDATE ledger_head SET epoch = $2, first_key = $3, last_key = $3, frozen = NULL, demanded = NULL WHERE log_id = $1;
