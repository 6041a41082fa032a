package wire

import (
	"encoding/binary"
	"strconv"
)

// ErrorCode tells the receiver which Go error to make of an Error. Append-only. A code that a receiver does not know decodes
// as its number and means what ErrInternal means.
type ErrorCode uint8

const (
	ErrSQL              ErrorCode = 1 // SQLite refused the statement; Primary, Extended and Offset are set
	ErrNonDeterministic ErrorCode = 2
	ErrNotLeader        ErrorCode = 3
	ErrExpired          ErrorCode = 4
	ErrTooLarge         ErrorCode = 5
	ErrRefused          ErrorCode = 6
	ErrOutcomeUnknown   ErrorCode = 7
	ErrClosed           ErrorCode = 8
	ErrDiskFull         ErrorCode = 9
	ErrHalted           ErrorCode = 10
	ErrTimeout          ErrorCode = 11
	ErrCanceled         ErrorCode = 12
	ErrBusy             ErrorCode = 13
	ErrInternal         ErrorCode = 14
	ErrNoDatabase       ErrorCode = 15
	ErrNoHandler        ErrorCode = 16
	ErrPanic            ErrorCode = 17
	ErrApp              ErrorCode = 18
	ErrFormat           ErrorCode = 19
	ErrFunctionNotReady ErrorCode = 20 // Msg is the function, Detail the nodes that lack it, one a line
	ErrUnknownMember    ErrorCode = 21 // as the following a refused change of members
	ErrLastVoter        ErrorCode = 22
	ErrNoQuorum         ErrorCode = 23
	ErrNoSuccessor      ErrorCode = 24
	ErrTxAborted        ErrorCode = 25 // a transaction has ended; Primary is the reason, Msg tells, Detail is who held the writer
	ErrNotFound         ErrorCode = 26 // the request whose outcome was asked for was not applied and never will be
)

var errorCodeNames = [...]string{
	ErrSQL:              "SQL error",
	ErrNonDeterministic: "not deterministic",
	ErrNotLeader:        "not the leader",
	ErrExpired:          "request expired",
	ErrTooLarge:         "too large",
	ErrRefused:          "refused",
	ErrOutcomeUnknown:   "outcome unknown",
	ErrClosed:           "closed",
	ErrDiskFull:         "disk full",
	ErrHalted:           "replica halted",
	ErrTimeout:          "timeout",
	ErrCanceled:         "canceled",
	ErrBusy:             "busy",
	ErrInternal:         "internal error",
	ErrNoDatabase:       "no such database",
	ErrNoHandler:        "no such handler",
	ErrPanic:            "panic",
	ErrApp:              "application error",
	ErrFormat:           "unknown format",
	ErrFunctionNotReady: "function not ready",
	ErrUnknownMember:    "no such member",
	ErrLastVoter:        "last voter",
	ErrNoQuorum:         "no quorum",
	ErrNoSuccessor:      "no successor",
	ErrTxAborted:        "transaction aborted",
	ErrNotFound:         "not applied",
}

func (c ErrorCode) String() string {
	if int(c) < len(errorCodeNames) && errorCodeNames[c] != "" {
		return errorCodeNames[c]
	}
	return "error code " + strconv.Itoa(int(c))
}

// Error is an error that travels. Its decoded strings are copies.
type Error struct {
	Code              ErrorCode
	Primary, Extended int32 // SQLite's result codes
	Offset            int32 // byte offset in SQL, negative if unknown
	Msg, SQL, Detail  string
}

func (e *Error) Error() string {
	s := "colmena: "
	if e.Msg == "" {
		s += e.Code.String()
	} else {
		s += e.Msg
	}
	if e.Detail != "" {
		s += ": " + e.Detail
	}
	return s
}

const minErrorBytes = 7

func (e *Error) size() int {
	if e == nil {
		return 0
	}
	return statementOverhead + len(e.Msg) + len(e.SQL) + len(e.Detail)
}

func appendError(b []byte, e *Error) []byte {
	b = append(b, byte(e.Code))
	b = binary.AppendVarint(b, int64(e.Primary))
	b = binary.AppendVarint(b, int64(e.Extended))
	b = binary.AppendVarint(b, int64(e.Offset))
	b = appendString(b, e.Msg)
	b = appendString(b, e.SQL)
	return appendString(b, e.Detail)
}

func (c *cursor) readError() *Error {
	if c.left() < minErrorBytes {
		c.fail("ends early")
		return nil
	}
	e := &Error{
		Code:     ErrorCode(c.byte()),
		Primary:  c.varint32(),
		Extended: c.varint32(),
		Offset:   c.varint32(),
		Msg:      string(c.bytes("error message bytes", MaxFrameBytes)),
		SQL:      string(c.bytes("statement bytes", MaxStatementBytes)),
		Detail:   string(c.bytes("error detail bytes", MaxFrameBytes)),
	}
	if c.err != nil {
		return nil
	}
	return e
}
