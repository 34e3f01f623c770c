-- Lists that are read in: how far each has come.

-- name: read_progress :one
SELECT reading, salt, position, line, rows, digest, tally, refusals, refusals_digest, finished_at IS NOT NULL AS finished
FROM import WHERE log_id = $1 AND list = $2;

-- name: begin :exec
-- A list is read from its first row.
INSERT INTO import (log_id, list, reading, salt) VALUES ($1, $2, $3, $4)
ON CONFLICT (log_id, list) DO UPDATE
SET reading = excluded.reading, salt = excluded.salt, position = 0, line = 0, rows = 0, digest = '', tally = '{}',
    refusals = 0, refusals_digest = '', started_at = now(), finished_at = NULL;

-- name: save_progress :exec
-- $11: when the file came to its end, or null.
UPDATE import SET position = $4, line = $5, rows = $6, digest = $7, tally = $8, refusals = $9, refusals_digest = $10,
                  finished_at = $11
WHERE log_id = $1 AND list = $2 AND reading = $3;
