package transport

//lint:file-ignore SA1019 raft itself still sets and reads the deprecated Leader and Candidate fields

import (
	"errors"
	"fmt"
	"io"
	"net"
	"time"

	"github.com/hashicorp/raft"
)

// serve answers the requests of one inbound raft connection, in order, until it
// ends. The caller closes it.
func (n *raftNet) serve(pc *peerConn) {
	c := newRaftConn(pc, n.t.cfg.RaftTimeout)
	for !n.isStopped() {
		if err := n.serveOne(c); err != nil {
			expected := errors.Is(err, io.EOF) || errors.Is(err, net.ErrClosed) || errors.Is(err, raft.ErrTransportShutdown)
			if !expected && n.t.ctx.Err() == nil {
				n.t.log.Debug("raft connection ended", "peer", pc.peer.NodeID, "error", err)
			}
			return
		}
	}
}

// serveOne reads a request, has raft answer it and writes the answer.
func (n *raftNet) serveOne(c *raftConn) error {
	// Between requests the connection may be idle; within one it must go on.
	c.stream.reading = false
	if err := c.SetReadDeadline(time.Now().Add(serveIdleMax)); err != nil {
		return err
	}
	if _, err := c.r.Peek(1); err != nil {
		return err
	}
	c.stream.reading = true
	if err := c.SetReadDeadline(time.Now().Add(n.t.cfg.RaftTimeout)); err != nil {
		return err
	}
	typ, body, err := readFrame(c.r)
	if err != nil {
		return err
	}
	req, entries, err := decodeRequest(typ, body)
	if err != nil {
		return err
	}
	rpc := raft.RPC{Command: req}
	var rest *io.LimitedReader
	switch r := req.(type) {
	case *raft.AppendEntriesRequest:
		if r.Entries, err = readEntries(c.r, entries); err != nil {
			return err
		}
	case *raft.InstallSnapshotRequest:
		rest = &io.LimitedReader{R: c.r, N: r.Size}
		rpc.Reader = rest
	}
	if id := req.(raft.WithRPCHeader).GetRPCHeader().ID; len(id) > 0 && string(id) != c.peer.NodeID {
		return fmt.Errorf("transport: node %q sent a raft request in the name of %q", c.peer.NodeID, id)
	}
	resp, err := n.dispatch(rpc)
	if err != nil {
		return err
	}
	if rest != nil && rest.N > 0 {
		return fmt.Errorf("transport: %d bytes of a snapshot were not wanted: %w", rest.N, io.ErrShortWrite)
	}
	b, err := encodeResponse(c.buf[:0], responseType(typ), resp.Response, resp.Error)
	if err != nil {
		return err
	}
	c.buf = b[:0]
	_, err = c.stream.Write(b)
	return err
}

func readEntries(r io.Reader, n int) ([]*raft.Log, error) {
	if n == 0 {
		return nil, nil
	}
	var entries []*raft.Log
	for range n {
		typ, body, err := readFrame(r)
		if err != nil {
			return nil, err
		}
		if typ != typeEntry {
			return nil, fmt.Errorf("%w: type %d among the entries", errRaftFrame, typ)
		}
		l, err := decodeEntry(body)
		if err != nil {
			return nil, err
		}
		entries = append(entries, l)
	}
	return entries, nil
}

// dispatch hands a request to raft and waits for its answer. Heartbeats go past
// raft's main loop, which may be waiting for a disk.
func (n *raftNet) dispatch(rpc raft.RPC) (raft.RPCResponse, error) {
	answer := make(chan raft.RPCResponse, 1)
	rpc.RespChan = answer
	if f := n.heartbeat.Load(); f != nil && isHeartbeat(rpc.Command) {
		(*f)(rpc)
	} else {
		select {
		case n.rpcs <- rpc:
		case <-n.stopped:
			return raft.RPCResponse{}, raft.ErrTransportShutdown
		}
	}
	select {
	case resp := <-answer:
		return resp, nil
	case <-n.stopped:
		return raft.RPCResponse{}, raft.ErrTransportShutdown
	}
}

// isHeartbeat is raft's own definition of a heartbeat.
func isHeartbeat(cmd any) bool {
	r, ok := cmd.(*raft.AppendEntriesRequest)
	return ok && r.Term != 0 && (r.Addr != nil || r.Leader != nil) && r.PrevLogEntry == 0 && r.PrevLogTerm == 0 &&
		len(r.Entries) == 0 && r.LeaderCommitIndex == 0
}

func responseType(request byte) byte {
	const offset = typeAppendEntriesResponse - typeAppendEntries
	return request + offset
}
