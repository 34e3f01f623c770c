-- The database itself.

-- name: ping :exec
SELECT;
