package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"time"
)

// network is what the nodes reach each other through: a TCP proxy in front of each, whose
// address is the one that the node advertises. A node that dials says first who it is, see
// dialAs, so that a partition can have both ends and one direction.
type network struct {
	wg sync.WaitGroup

	mu      sync.Mutex // guards what follows
	changed *sync.Cond // on mu
	doors   map[string]*door
	links   map[*link]struct{}
	closed  bool
}

// door is the proxy of a node. All but its listener is guarded by network.mu.
type door struct {
	listener net.Listener
	target   string // where the node listens
	deaf     bool   // nothing reaches the node
	mute     bool   // nothing of what it says arrives
}

// link is a connection from one node to another.
type link struct {
	near, far net.Conn // to the node that dialed, and to the one that was dialed
	from, to  string
	over      bool // guarded by network.mu
}

const (
	introductionBytesMax = 64
	// connectTimeout bounds all that comes before two nodes are connected.
	connectTimeout = 5 * time.Second
)

func newNetwork(ids []string) (*network, error) {
	w := &network{doors: map[string]*door{}, links: map[*link]struct{}{}}
	w.changed = sync.NewCond(&w.mu)
	for _, id := range ids {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			w.close()
			return nil, err
		}
		w.doors[id] = &door{listener: l}
	}
	for _, id := range ids {
		w.wg.Go(func() { w.accept(id, w.doors[id].listener) })
	}
	return w, nil
}

// dialAs returns how a node opens connections to others: it introduces itself to the proxy.
func dialAs(id string) func(context.Context, string) (net.Conn, error) {
	return func(ctx context.Context, addr string) (net.Conn, error) {
		conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", addr)
		if err != nil {
			return nil, err
		}
		if _, err := fmt.Fprintln(conn, id); err != nil {
			return nil, errors.Join(err, conn.Close())
		}
		return conn, nil
	}
}

// addr is the address at which the others reach a node.
func (w *network) addr(id string) string { return w.doors[id].listener.Addr().String() }

func (w *network) setTarget(id, addr string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.doors[id].target = addr
}

// cut says what may pass from now on between a node and all others.
func (w *network) cut(id string, deaf, mute bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.doors[id].deaf, w.doors[id].mute = deaf, mute
	w.changed.Broadcast()
}

func (w *network) healAll() {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, d := range w.doors {
		d.deaf, d.mute = false, false
	}
	w.changed.Broadcast()
}

func (w *network) isCut(id string) (deaf, mute bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.doors[id].deaf, w.doors[id].mute
}

// close ends all links and waits for the proxies' goroutines.
func (w *network) close() {
	w.mu.Lock()
	w.closed = true
	for _, d := range w.doors {
		_ = d.listener.Close()
	}
	for l := range w.links {
		w.endLocked(l)
	}
	w.mu.Unlock()
	w.wg.Wait()
}

func (w *network) end(l *link) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.endLocked(l)
}

func (w *network) endLocked(l *link) {
	l.over = true
	_ = l.near.Close()
	if l.far != nil {
		_ = l.far.Close()
	}
	w.changed.Broadcast()
}

func (w *network) accept(to string, listener net.Listener) {
	for {
		conn, err := listener.Accept()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			time.Sleep(time.Millisecond) // out of descriptors, say; whoever dialed tries again
			continue
		}
		w.wg.Go(func() { w.carry(&link{near: conn, to: to}) })
	}
}

// carry connects who dialed with whom it dialed, and carries what they say until one of
// them ends it.
func (w *network) carry(l *link) {
	if !w.add(l) {
		return
	}
	defer w.remove(l)
	giveUp := time.AfterFunc(connectTimeout, func() { w.end(l) })
	in, err := w.introduce(l)
	if err != nil {
		return
	}
	// Whoever is cut off cannot connect either: what was dialed hangs, as when nobody answers.
	if !w.await(l, l.from, l.to) || !w.await(l, l.to, l.from) || w.connect(l) != nil || !giveUp.Stop() {
		return
	}
	var both sync.WaitGroup
	both.Go(func() { w.pump(l, l.far, in, l.from, l.to) })
	both.Go(func() { w.pump(l, l.near, l.far, l.to, l.from) })
	both.Wait()
}

func (w *network) add(l *link) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.closed {
		w.endLocked(l)
		return false
	}
	w.links[l] = struct{}{}
	return true
}

func (w *network) remove(l *link) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.endLocked(l)
	delete(w.links, l)
}

// introduce reads who dialed.
func (w *network) introduce(l *link) (io.Reader, error) {
	in := bufio.NewReaderSize(l.near, introductionBytesMax)
	line, err := in.ReadSlice('\n')
	if err != nil {
		return nil, err
	}
	l.from = strings.TrimSpace(string(line))
	if w.doors[l.from] == nil {
		return nil, fmt.Errorf("a stranger dialed %s", l.to)
	}
	return in, nil
}

func (w *network) connect(l *link) error {
	w.mu.Lock()
	target := w.doors[l.to].target
	w.mu.Unlock()
	far, err := net.DialTimeout("tcp", target, connectTimeout)
	if err != nil {
		return err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if l.far = far; l.over {
		w.endLocked(l)
	}
	return nil
}

// pump carries one direction. What may not pass is held back, as a network without a route
// does to TCP, and arrives when it is healed if both ends still want it then.
func (w *network) pump(l *link, dst io.Writer, src io.Reader, from, to string) {
	defer w.end(l)
	chunk := make([]byte, 32<<10)
	for {
		n, err := src.Read(chunk)
		if n > 0 {
			if !w.await(l, from, to) {
				return
			}
			if _, err := dst.Write(chunk[:n]); err != nil {
				return
			}
		}
		if err != nil {
			w.await(l, from, to) // nor does the end of what it says arrive
			return
		}
	}
}

// await waits until what one node says may reach the other. It is false when the link is over.
func (w *network) await(l *link, from, to string) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	for !l.over && (w.doors[from].mute || w.doors[to].deaf) {
		w.changed.Wait()
	}
	return !l.over
}
