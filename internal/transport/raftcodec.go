package transport

//lint:file-ignore SA1019 raft itself still sets and reads the deprecated Leader and Candidate fields

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/hashicorp/raft"
)

// A raft connection carries frames: a type byte, a 4-byte length, a body. Every
// length is checked against the bound of its type before anything is allocated,
// and a body is allocated as it arrives, so that a frame costs what was sent and
// not what it claims.
//
// A request is one frame; an AppendEntries frame is followed by as many entry
// frames as it says, an InstallSnapshot frame by as many raw bytes. A response is
// one frame. Types are append-only and each is one version of its message: a
// changed message takes a new type.
const (
	typeAppendEntries   = 1
	typeRequestVote     = 2
	typePreVote         = 3
	typeTimeoutNow      = 4
	typeInstallSnapshot = 5
	typeEntry           = 6

	typeAppendEntriesResponse   = 65
	typeRequestVoteResponse     = 66
	typePreVoteResponse         = 67
	typeTimeoutNowResponse      = 68
	typeInstallSnapshotResponse = 69
)

const (
	frameHeadBytes = 5
	// entriesMax bounds the entries of one AppendEntries (raft's own bound of MaxAppendEntries).
	entriesMax = 1024
	// entryBytesMax bounds one log entry: wire.MaxEntryBytes and room for its fields.
	entryBytesMax = 65 << 20
	// smallBytesMax bounds the frames that carry no log data.
	smallBytesMax = 64 << 10
	// snapshotBytesMax bounds an InstallSnapshot's fields, the configuration among them.
	snapshotBytesMax = 1 << 20
	// allocStepBytes is what a frame may claim without having sent it.
	allocStepBytes = 64 << 10
)

var errRaftFrame = errors.New("transport: malformed raft frame")

// boundOf is the largest body of a frame type, -1 for a type that is not known.
func boundOf(typ byte) int {
	switch typ {
	case typeEntry:
		return entryBytesMax
	case typeInstallSnapshot:
		return snapshotBytesMax
	case typeAppendEntries, typeRequestVote, typePreVote, typeTimeoutNow,
		typeAppendEntriesResponse, typeRequestVoteResponse, typePreVoteResponse,
		typeTimeoutNowResponse, typeInstallSnapshotResponse:
		return smallBytesMax
	}
	return -1
}

// readFrame reads one frame; the body is the caller's.
func readFrame(r io.Reader) (typ byte, body []byte, err error) {
	var head [frameHeadBytes]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return 0, nil, err
	}
	typ = head[0]
	n, bound := int64(binary.BigEndian.Uint32(head[1:])), boundOf(typ)
	if bound < 0 {
		return typ, nil, fmt.Errorf("%w: type %d", errRaftFrame, typ)
	}
	if n > int64(bound) {
		return typ, nil, fmt.Errorf("%w: type %d of %d bytes, at most %d", errRaftFrame, typ, n, bound)
	}
	body, err = readGrowing(r, int(n))
	return typ, body, err
}

// readGrowing reads n bytes, allocating at most twice what has arrived, or one step.
func readGrowing(r io.Reader, n int) ([]byte, error) {
	b := make([]byte, min(n, allocStepBytes))
	for got := 0; ; {
		if _, err := io.ReadFull(r, b[got:]); err != nil {
			if errors.Is(err, io.EOF) {
				err = io.ErrUnexpectedEOF
			}
			return nil, err
		}
		if got = len(b); got == n {
			return b, nil
		}
		grown := make([]byte, min(n, 2*got))
		copy(grown, b)
		b = grown
	}
}

// beginFrame appends a frame's head, its length yet unknown.
func beginFrame(b []byte, typ byte) []byte { return append(b, typ, 0, 0, 0, 0) }

// endFrame enters the length of the frame that began at start; more is how many
// bytes of its body follow outside b.
func endFrame(b []byte, start, more int) error {
	n := len(b) - start - frameHeadBytes + more
	if bound := boundOf(b[start]); n > bound {
		return fmt.Errorf("transport: raft message of type %d has %d bytes, at most %d", b[start], n, bound)
	}
	binary.BigEndian.PutUint32(b[start+1:], uint32(n))
	return nil
}

func appendBytes(b, v []byte) []byte {
	return append(binary.AppendUvarint(b, uint64(len(v))), v...)
}

func appendBool(b []byte, v bool) []byte {
	if v {
		return append(b, 1)
	}
	return append(b, 0)
}

func appendUints(b []byte, vs ...uint64) []byte {
	for _, v := range vs {
		b = binary.AppendUvarint(b, v)
	}
	return b
}

func appendRPCHeader(b []byte, h raft.RPCHeader) []byte {
	b = binary.AppendVarint(b, int64(h.ProtocolVersion))
	return appendBytes(appendBytes(b, h.ID), h.Addr)
}

// encodeRequest appends the frame of a request; the entries of an AppendEntries
// are encoded apart.
func encodeRequest(b []byte, req any) ([]byte, error) {
	start := len(b)
	switch r := req.(type) {
	case *raft.AppendEntriesRequest:
		if len(r.Entries) > entriesMax {
			return b, fmt.Errorf("transport: %d entries in one AppendEntries, at most %d", len(r.Entries), entriesMax)
		}
		b = appendRPCHeader(beginFrame(b, typeAppendEntries), r.RPCHeader)
		b = appendBytes(appendUints(b, r.Term), r.Leader)
		b = appendUints(b, r.PrevLogEntry, r.PrevLogTerm, r.LeaderCommitIndex, uint64(len(r.Entries)))
	case *raft.RequestVoteRequest:
		b = appendRPCHeader(beginFrame(b, typeRequestVote), r.RPCHeader)
		b = appendBytes(appendUints(b, r.Term), r.Candidate)
		b = appendBool(appendUints(b, r.LastLogIndex, r.LastLogTerm), r.LeadershipTransfer)
	case *raft.RequestPreVoteRequest:
		b = appendRPCHeader(beginFrame(b, typePreVote), r.RPCHeader)
		b = appendUints(b, r.Term, r.LastLogIndex, r.LastLogTerm)
	case *raft.TimeoutNowRequest:
		b = appendRPCHeader(beginFrame(b, typeTimeoutNow), r.RPCHeader)
	case *raft.InstallSnapshotRequest:
		b = appendRPCHeader(beginFrame(b, typeInstallSnapshot), r.RPCHeader)
		b = binary.AppendVarint(b, int64(r.SnapshotVersion))
		b = appendBytes(appendUints(b, r.Term), r.Leader)
		b = appendBytes(appendUints(b, r.LastLogIndex, r.LastLogTerm), r.Peers)
		b = appendUints(appendBytes(b, r.Configuration), r.ConfigurationIndex)
		b = binary.AppendVarint(b, r.Size)
	default:
		return b, fmt.Errorf("transport: no raft request: %T", req)
	}
	return b, endFrame(b, start, 0)
}

// encodeEntry appends the frame of an entry but for its data, which is the
// frame's rest and follows.
func encodeEntry(b []byte, l *raft.Log) ([]byte, error) {
	start := len(b)
	b = appendUints(beginFrame(b, typeEntry), l.Index, l.Term, uint64(l.Type))
	var at int64
	if !l.AppendedAt.IsZero() {
		at = l.AppendedAt.UnixNano()
	}
	b = appendBytes(binary.AppendVarint(b, at), l.Extensions)
	return b, endFrame(b, start, len(l.Data))
}

// encodeResponse appends the frame of a response: raft's error, then its answer.
func encodeResponse(b []byte, typ byte, resp any, respErr error) ([]byte, error) {
	start := len(b)
	b = beginFrame(b, typ)
	var text string
	if respErr != nil {
		text = respErr.Error()
		text = text[:min(len(text), 4<<10)]
	}
	b = appendBytes(b, []byte(text))
	switch r := resp.(type) {
	case nil:
		b = appendBool(b, false)
	case *raft.AppendEntriesResponse:
		b = appendUints(appendRPCHeader(appendBool(b, true), r.RPCHeader), r.Term, r.LastLog)
		b = appendBool(appendBool(b, r.Success), r.NoRetryBackoff)
	case *raft.RequestVoteResponse:
		b = appendUints(appendRPCHeader(appendBool(b, true), r.RPCHeader), r.Term)
		b = appendBool(appendBytes(b, r.Peers), r.Granted)
	case *raft.RequestPreVoteResponse:
		b = appendUints(appendRPCHeader(appendBool(b, true), r.RPCHeader), r.Term)
		b = appendBool(b, r.Granted)
	case *raft.TimeoutNowResponse:
		b = appendRPCHeader(appendBool(b, true), r.RPCHeader)
	case *raft.InstallSnapshotResponse:
		b = appendUints(appendRPCHeader(appendBool(b, true), r.RPCHeader), r.Term)
		b = appendBool(b, r.Success)
	default:
		return b, fmt.Errorf("transport: no raft response: %T", resp)
	}
	return b, endFrame(b, start, 0)
}

// fields reads the fields of one body. After the first failure every read gives
// zero; done tells whether all went well and nothing was left.
type fields struct {
	b   []byte
	bad bool
}

func (f *fields) uint() uint64 {
	v, n := binary.Uvarint(f.b)
	if n <= 0 {
		f.bad, f.b = true, nil
		return 0
	}
	f.b = f.b[n:]
	return v
}

func (f *fields) int() int64 {
	v, n := binary.Varint(f.b)
	if n <= 0 {
		f.bad, f.b = true, nil
		return 0
	}
	f.b = f.b[n:]
	return v
}

// bytes returns a slice of the body, nil if empty.
func (f *fields) bytes() []byte {
	n := f.uint()
	if n > uint64(len(f.b)) {
		f.bad, f.b = true, nil
		return nil
	}
	if n == 0 {
		return nil
	}
	v := f.b[:n:n]
	f.b = f.b[n:]
	return v
}

func (f *fields) bool() bool {
	if len(f.b) == 0 || f.b[0] > 1 {
		f.bad, f.b = true, nil
		return false
	}
	v := f.b[0] == 1
	f.b = f.b[1:]
	return v
}

func (f *fields) rpcHeader() raft.RPCHeader {
	return raft.RPCHeader{ProtocolVersion: raft.ProtocolVersion(f.int()), ID: f.bytes(), Addr: f.bytes()}
}

func (f *fields) done() error {
	if f.bad || len(f.b) > 0 {
		return errRaftFrame
	}
	return nil
}

// decodeRequest decodes a request's frame. entries is how many entry frames follow.
func decodeRequest(typ byte, body []byte) (req any, entries int, err error) {
	f := &fields{b: body}
	switch typ {
	case typeAppendEntries:
		r := &raft.AppendEntriesRequest{RPCHeader: f.rpcHeader(), Term: f.uint(), Leader: f.bytes(),
			PrevLogEntry: f.uint(), PrevLogTerm: f.uint(), LeaderCommitIndex: f.uint()}
		n := f.uint()
		if n > entriesMax {
			return nil, 0, fmt.Errorf("%w: %d entries, at most %d", errRaftFrame, n, entriesMax)
		}
		req, entries = r, int(n)
	case typeRequestVote:
		req = &raft.RequestVoteRequest{RPCHeader: f.rpcHeader(), Term: f.uint(), Candidate: f.bytes(),
			LastLogIndex: f.uint(), LastLogTerm: f.uint(), LeadershipTransfer: f.bool()}
	case typePreVote:
		req = &raft.RequestPreVoteRequest{RPCHeader: f.rpcHeader(), Term: f.uint(),
			LastLogIndex: f.uint(), LastLogTerm: f.uint()}
	case typeTimeoutNow:
		req = &raft.TimeoutNowRequest{RPCHeader: f.rpcHeader()}
	case typeInstallSnapshot:
		r := &raft.InstallSnapshotRequest{RPCHeader: f.rpcHeader(), SnapshotVersion: raft.SnapshotVersion(f.int()),
			Term: f.uint(), Leader: f.bytes(), LastLogIndex: f.uint(), LastLogTerm: f.uint(), Peers: f.bytes(),
			Configuration: f.bytes(), ConfigurationIndex: f.uint(), Size: f.int()}
		if r.Size < 0 {
			f.bad = true
		}
		req = r
	default:
		return nil, 0, fmt.Errorf("%w: type %d is no request", errRaftFrame, typ)
	}
	return req, entries, f.done()
}

// decodeEntry decodes an entry's frame; the entry keeps the body.
func decodeEntry(body []byte) (*raft.Log, error) {
	f := &fields{b: body}
	l := &raft.Log{Index: f.uint(), Term: f.uint()}
	typ := f.uint()
	at := f.int()
	l.Extensions = f.bytes()
	if f.bad || typ > 255 {
		return nil, errRaftFrame
	}
	l.Type = raft.LogType(typ)
	if at != 0 {
		l.AppendedAt = time.Unix(0, at)
	}
	if len(f.b) > 0 {
		l.Data = f.b[:len(f.b):len(f.b)]
	}
	return l, nil
}

// decodeResponse decodes a response's frame into resp, which says what is expected.
// remote is the error raft gave at the other side.
func decodeResponse(typ byte, body []byte, resp any) (remote, err error) {
	f := &fields{b: body}
	if text := f.bytes(); len(text) > 0 {
		remote = errors.New(string(text))
	}
	want := byte(0)
	has := f.bool()
	switch r := resp.(type) {
	case *raft.AppendEntriesResponse:
		if want = typeAppendEntriesResponse; has {
			*r = raft.AppendEntriesResponse{RPCHeader: f.rpcHeader(), Term: f.uint(), LastLog: f.uint(),
				Success: f.bool(), NoRetryBackoff: f.bool()}
		}
	case *raft.RequestVoteResponse:
		if want = typeRequestVoteResponse; has {
			*r = raft.RequestVoteResponse{RPCHeader: f.rpcHeader(), Term: f.uint(), Peers: f.bytes(), Granted: f.bool()}
		}
	case *raft.RequestPreVoteResponse:
		if want = typePreVoteResponse; has {
			*r = raft.RequestPreVoteResponse{RPCHeader: f.rpcHeader(), Term: f.uint(), Granted: f.bool()}
		}
	case *raft.TimeoutNowResponse:
		if want = typeTimeoutNowResponse; has {
			*r = raft.TimeoutNowResponse{RPCHeader: f.rpcHeader()}
		}
	case *raft.InstallSnapshotResponse:
		if want = typeInstallSnapshotResponse; has {
			*r = raft.InstallSnapshotResponse{RPCHeader: f.rpcHeader(), Term: f.uint(), Success: f.bool()}
		}
	default:
		return nil, fmt.Errorf("transport: no raft response: %T", resp)
	}
	if typ != want {
		return nil, fmt.Errorf("%w: response of type %d, expected %d", errRaftFrame, typ, want)
	}
	if remote == nil && !has {
		return nil, fmt.Errorf("%w: response without an answer", errRaftFrame)
	}
	return remote, f.done()
}
