-- The check path: one indexed read per subject; history is never touched.

-- name: read_subjects :many
-- The head, and beside it every row that stands for the identifiers (one row of nulls where there is none).
SELECT h.epoch, h.size, h.policy, h.frozen, clock_timestamp() AS now,
       s.identifier, s.purpose, s.channel, s.contact, s.recipient, s.slot, s.grade, s.status, s.occurred_at,
       s.recorded_at, s.expires_at, s.notice, s.notice_version, s.language, s.method, s.event
FROM ledger_head h
LEFT JOIN consent_state s ON s.log_id = $1 AND s.identifier = ANY($2::bytea[])
WHERE h.log_id = $1;

-- name: read_contacts :many
SELECT contact, value FROM contact WHERE log_id = $1 AND contact = ANY($2::bytea[]);

-- name: read_history :many
-- A page of one identifier's events, oldest first.
SELECT idx, sequence, recorded_at, payload
FROM consent_event
WHERE log_id = $1 AND identifier = $2 AND sequence > $3
ORDER BY sequence
LIMIT $4;
