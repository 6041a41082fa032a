// Package wire holds the byte formats of colmena: the entry that is replicated, the stored memory of requests,
// and the messages that nodes exchange.
//
// Every message starts with a kind byte and a version byte. Integers are varints (signed ones zig-zag), floats, seeds and
// fingerprints are eight bytes little-endian, and what a reader can derive (a repeated SQL text, a consecutive sequence) is
// left out under flag bits. Flag bits and enumerations are append-only; a flag that this version does not know is corruption,
// because a writer that needs a new one also raises the version. The entry and the stored results end in a CRC-32C over all
// that precedes it; the other messages rely on the connection that carries them.
//
// Decoders never trust a length: each is held against its limit and against the bytes that are left before anything is
// allocated. They do not panic on any input. What they return aliases the input unless a type says otherwise, so the input must
// not be modified while a decoded value is in use.
package wire

import (
	"errors"
	"fmt"
	"strconv"
)

// Kind bytes of the messages. They are never renumbered.
const (
	MsgEntry         byte = 'E'
	MsgStoredResults byte = 'S'
	MsgHello         byte = 'H'
	MsgWriteRequest  byte = 'W'
	MsgWriteResponse byte = 'w'
	MsgMarkRequest   byte = 'M'
	MsgMarkResponse  byte = 'm'
	MsgTermRequest   byte = 'T'
	MsgTermResponse  byte = 't'
	MsgQueryRequest  byte = 'Q'
	MsgRowsHeader    byte = 'C'
	MsgRowsChunk     byte = 'R'

	MsgSessionRequest  byte = 'X'
	MsgSessionResponse byte = 'x'
)

// FormatOldest and FormatNewest are the range of format versions that this build reads, as said in Hello.
const (
	FormatOldest uint16 = 1
	FormatNewest uint16 = 1
)

// version is the one version of every message that exists so far.
const version uint8 = 1

// ErrCorrupt is wrapped by every error about bytes that are not what their kind and version promise.
var ErrCorrupt = errors.New("wire: corrupt bytes")

// FormatError reports a message whose kind or version this build does not read.
type FormatError struct {
	Kind    byte  // found
	Version uint8 // found

	WantKind    byte  // what the decoder that was called reads
	WantVersion uint8 // the newest version of it that this build reads
}

func (e *FormatError) Error() string {
	return fmt.Sprintf("colmena: found format %q version %d, this build reads %q up to version %d; run the version of colmena that wrote it, or a newer one",
		e.Kind, e.Version, e.WantKind, e.WantVersion)
}

// LimitError reports something larger than its limit. A decoder that meets one wraps ErrCorrupt too.
type LimitError struct {
	What string // with the unit: "statement bytes"
	Got  uint64
	Max  uint64
}

func (e *LimitError) Error() string {
	return fmt.Sprintf("colmena: %s: %d, the limit is %d", e.What, e.Got, e.Max)
}

// Mark is the raft term and index of an entry. The zero Mark precedes every entry.
type Mark struct{ Term, Index uint64 }

// Less orders marks by index alone: within one log the index decides, and comparing terms is the caller's business.
func (m Mark) Less(o Mark) bool { return m.Index < o.Index }

// IsZero reports whether m is the mark that precedes every entry.
func (m Mark) IsZero() bool { return m == Mark{} }

// String is "term/index".
func (m Mark) String() string {
	return strconv.FormatUint(m.Term, 10) + "/" + strconv.FormatUint(m.Index, 10)
}

// RequestID names a unit of work for good. Origin is the index of the entry that registered the instance, so that an instance
// whose results were forgotten cannot look new; Seq counts that instance's units.
type RequestID struct{ Origin, Seq uint64 }

// String is "origin:seq".
func (id RequestID) String() string {
	return strconv.FormatUint(id.Origin, 10) + ":" + strconv.FormatUint(id.Seq, 10)
}

// PreState is what SQLite's connection remembered before a statement ran: last_insert_rowid() and changes().
type PreState struct{ LastInsertID, Changes int64 }

// Outcome is what a statement did, compared on every replica.
type Outcome struct{ RowsAffected, LastInsertID int64 }
