-- What a run was asked for, so that it can be asked again.

ALTER TABLE runs ADD COLUMN arguments JSON;
COMMENT ON COLUMN runs.arguments IS 'What the run was asked for, as JSON; NULL for undo and redo, and for runs of before this column';
