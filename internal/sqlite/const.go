package sqlite

import lib "modernc.org/sqlite/lib"

// Type is the storage class of a value.
type Type int

// Storage classes, numbered as SQLite numbers them.
const (
	TypeInt   Type = lib.SQLITE_INTEGER
	TypeFloat Type = lib.SQLITE_FLOAT
	TypeText  Type = lib.SQLITE_TEXT
	TypeBlob  Type = lib.SQLITE_BLOB
	TypeNull  Type = lib.SQLITE_NULL
)

// Verdict is an authorizer's answer.
type Verdict int32

// Answers of an authorizer.
const (
	VerdictOK     Verdict = lib.SQLITE_OK
	VerdictDeny   Verdict = lib.SQLITE_DENY
	VerdictIgnore Verdict = lib.SQLITE_IGNORE
)

// Authorizer action codes. The comment gives Arg1 and Arg2.
const (
	ActionCreateIndex       = lib.SQLITE_CREATE_INDEX        // index, table
	ActionCreateTable       = lib.SQLITE_CREATE_TABLE        // table
	ActionCreateTempIndex   = lib.SQLITE_CREATE_TEMP_INDEX   // index, table
	ActionCreateTempTable   = lib.SQLITE_CREATE_TEMP_TABLE   // table
	ActionCreateTempTrigger = lib.SQLITE_CREATE_TEMP_TRIGGER // trigger, table
	ActionCreateTempView    = lib.SQLITE_CREATE_TEMP_VIEW    // view
	ActionCreateTrigger     = lib.SQLITE_CREATE_TRIGGER      // trigger, table
	ActionCreateView        = lib.SQLITE_CREATE_VIEW         // view
	ActionDelete            = lib.SQLITE_DELETE              // table
	ActionDropIndex         = lib.SQLITE_DROP_INDEX          // index, table
	ActionDropTable         = lib.SQLITE_DROP_TABLE          // table
	ActionDropTempIndex     = lib.SQLITE_DROP_TEMP_INDEX     // index, table
	ActionDropTempTable     = lib.SQLITE_DROP_TEMP_TABLE     // table
	ActionDropTempTrigger   = lib.SQLITE_DROP_TEMP_TRIGGER   // trigger, table
	ActionDropTempView      = lib.SQLITE_DROP_TEMP_VIEW      // view
	ActionDropTrigger       = lib.SQLITE_DROP_TRIGGER        // trigger, table
	ActionDropView          = lib.SQLITE_DROP_VIEW           // view
	ActionInsert            = lib.SQLITE_INSERT              // table
	ActionPragma            = lib.SQLITE_PRAGMA              // pragma, argument
	ActionRead              = lib.SQLITE_READ                // table, column
	ActionSelect            = lib.SQLITE_SELECT
	ActionTransaction       = lib.SQLITE_TRANSACTION   // operation
	ActionUpdate            = lib.SQLITE_UPDATE        // table, column
	ActionAttach            = lib.SQLITE_ATTACH        // file
	ActionDetach            = lib.SQLITE_DETACH        // database
	ActionAlterTable        = lib.SQLITE_ALTER_TABLE   // database, table
	ActionReindex           = lib.SQLITE_REINDEX       // index
	ActionAnalyze           = lib.SQLITE_ANALYZE       // table
	ActionCreateVTable      = lib.SQLITE_CREATE_VTABLE // table, module
	ActionDropVTable        = lib.SQLITE_DROP_VTABLE   // table, module
	ActionFunction          = lib.SQLITE_FUNCTION      // Arg1 is empty, Arg2 is the function
	ActionSavepoint         = lib.SQLITE_SAVEPOINT     // operation, name
	ActionRecursive         = lib.SQLITE_RECURSIVE
)

// What a row change reported by SetPreupdate does.
const (
	OpInsert = "INSERT"
	OpUpdate = "UPDATE"
	OpDelete = "DELETE"
)

// Limits for Conn.Limit.
const (
	LimitLength            = lib.SQLITE_LIMIT_LENGTH
	LimitSQLLength         = lib.SQLITE_LIMIT_SQL_LENGTH
	LimitColumn            = lib.SQLITE_LIMIT_COLUMN
	LimitExprDepth         = lib.SQLITE_LIMIT_EXPR_DEPTH
	LimitCompoundSelect    = lib.SQLITE_LIMIT_COMPOUND_SELECT
	LimitVDBEOp            = lib.SQLITE_LIMIT_VDBE_OP
	LimitFunctionArg       = lib.SQLITE_LIMIT_FUNCTION_ARG
	LimitAttached          = lib.SQLITE_LIMIT_ATTACHED
	LimitLikePatternLength = lib.SQLITE_LIMIT_LIKE_PATTERN_LENGTH
	LimitVariableNumber    = lib.SQLITE_LIMIT_VARIABLE_NUMBER
	LimitTriggerDepth      = lib.SQLITE_LIMIT_TRIGGER_DEPTH
	LimitWorkerThreads     = lib.SQLITE_LIMIT_WORKER_THREADS
)

// Switches for Conn.DBConfig.
const (
	ConfigForeignKeys    = int32(lib.SQLITE_DBCONFIG_ENABLE_FKEY)
	ConfigTriggers       = int32(lib.SQLITE_DBCONFIG_ENABLE_TRIGGER)
	ConfigViews          = int32(lib.SQLITE_DBCONFIG_ENABLE_VIEW)
	ConfigLoadExtension  = int32(lib.SQLITE_DBCONFIG_ENABLE_LOAD_EXTENSION)
	ConfigNoCkptOnClose  = int32(lib.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE)
	ConfigQPSG           = int32(lib.SQLITE_DBCONFIG_ENABLE_QPSG)
	ConfigResetDatabase  = int32(lib.SQLITE_DBCONFIG_RESET_DATABASE)
	ConfigDefensive      = int32(lib.SQLITE_DBCONFIG_DEFENSIVE)
	ConfigWritableSchema = int32(lib.SQLITE_DBCONFIG_WRITABLE_SCHEMA)
	ConfigDQSDML         = int32(lib.SQLITE_DBCONFIG_DQS_DML)
	ConfigDQSDDL         = int32(lib.SQLITE_DBCONFIG_DQS_DDL)
	ConfigTrustedSchema  = int32(lib.SQLITE_DBCONFIG_TRUSTED_SCHEMA)
)

// CheckpointMode says how far a checkpoint goes.
type CheckpointMode int32

// Checkpoint modes; Full without a prefix is the result code. Passive never waits; the others wait within the busy
// timeout for the writer, Restart and Truncate for the readers too.
const (
	Passive        CheckpointMode = lib.SQLITE_CHECKPOINT_PASSIVE
	CheckpointFull CheckpointMode = lib.SQLITE_CHECKPOINT_FULL
	Restart        CheckpointMode = lib.SQLITE_CHECKPOINT_RESTART
	Truncate       CheckpointMode = lib.SQLITE_CHECKPOINT_TRUNCATE
)
