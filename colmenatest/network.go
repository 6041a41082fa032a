package colmenatest

import (
	"bytes"
	"context"
	"errors"
	"net"
	"sync"
	"time"
)

// network is what the nodes of a cluster reach each other through: a TCP proxy in front
// of every node, whose address is the one that the node advertises. It knows of every
// connection which node dialed it, because the first thing a node says on a connection
// tells its own advertised address, in plain text. So TLS between the nodes is out.
type network struct {
	wg      sync.WaitGroup
	mu      sync.Mutex
	moved   *sync.Cond // on mu: what may pass has changed, or a link was cut
	doors   []*door    // by node; the slice is not changed after newNetwork
	links   map[*link]struct{}
	stopped bool
}

// door is a node's proxy. What follows listener is guarded by network.mu.
type door struct {
	listener net.Listener
	addr     string
	down     bool   // the node is dead: nobody hears of it
	target   string // where the node listens, "" while it does not
	deaf     bool   // nothing reaches the node
	mute     bool   // nothing of what it says arrives
}

// link is a connection through a proxy. Its fields are guarded by network.mu, apart from
// near and to.
type link struct {
	near net.Conn // to the node that dialed
	far  net.Conn // to the node that is reached, nil while that is dialed
	from int      // who dialed, stranger until it has said so
	to   int
	cut  bool
}

// stranger is who has not said which node it is.
const stranger = -1

// dialTimeout bounds how long a proxy dials the node behind it, on loopback.
const dialTimeout = 5 * time.Second

// newNetwork opens the proxies of n nodes, all of which are down.
func newNetwork(n int) (*network, error) {
	w := &network{links: map[*link]struct{}{}}
	w.moved = sync.NewCond(&w.mu)
	for range n {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			w.close()
			return nil, err
		}
		w.doors = append(w.doors, &door{listener: l, addr: l.Addr().String(), down: true})
	}
	for i := range w.doors {
		w.wg.Go(func() { w.accept(i) })
	}
	return w, nil
}

// addr is the address at which the others reach node i.
func (w *network) addr(i int) string { return w.doors[i].addr }

// change changes what may pass, and cuts the links on which nothing may pass any more.
func (w *network) change(f func(doors []*door)) {
	w.mu.Lock()
	defer w.mu.Unlock()
	f(w.doors)
	for l := range w.links {
		w.judgeLocked(l)
	}
	w.moved.Broadcast()
}

// cutOff reports whether anything between node i and the others is cut.
func (w *network) cutOff(i int) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	d := w.doors[i]
	return d.down || d.deaf || d.mute
}

// passesLocked reports whether what node a says reaches node b.
func (w *network) passesLocked(a, b int) bool {
	return (a == stranger || !w.doors[a].mute) && (b == stranger || !w.doors[b].deaf)
}

// judgeLocked cuts a link that has a dead end, or on which nothing passes.
func (w *network) judgeLocked(l *link) {
	dead := w.doors[l.to].down || l.from != stranger && w.doors[l.from].down
	if dead || !w.passesLocked(l.from, l.to) && !w.passesLocked(l.to, l.from) {
		w.cutLocked(l)
	}
}

func (w *network) cutLocked(l *link) {
	l.cut = true
	_ = l.near.Close()
	if l.far != nil {
		_ = l.far.Close()
	}
	w.moved.Broadcast()
}

// close ends all links and waits for the proxies' goroutines.
func (w *network) close() {
	w.mu.Lock()
	w.stopped = true
	for _, d := range w.doors {
		_ = d.listener.Close()
	}
	for l := range w.links {
		w.cutLocked(l)
	}
	w.mu.Unlock()
	w.wg.Wait()
}

// accept is the life of node i's proxy.
func (w *network) accept(i int) {
	for {
		conn, err := w.doors[i].listener.Accept()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			// Out of descriptors, say; whoever dialed tries again.
			time.Sleep(time.Millisecond)
			continue
		}
		w.wg.Go(func() { w.carry(i, conn) })
	}
}

// carry connects who dialed with node to, and carries what they say until both are done.
func (w *network) carry(to int, near net.Conn) {
	l := &link{near: near, from: stranger, to: to}
	w.mu.Lock()
	target := w.doors[to].target
	w.links[l] = struct{}{}
	if w.judgeLocked(l); w.stopped || target == "" {
		w.cutLocked(l)
	}
	open := !l.cut
	w.mu.Unlock()
	defer func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		w.cutLocked(l)
		delete(w.links, l)
	}()
	if !open {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), dialTimeout)
	far, err := (&net.Dialer{}).DialContext(ctx, "tcp", target)
	cancel()
	if err != nil {
		return
	}
	w.mu.Lock()
	if l.far = far; l.cut {
		_ = far.Close()
	}
	w.mu.Unlock()
	var both sync.WaitGroup
	both.Go(func() { w.pump(l, far, near, true) })
	both.Go(func() { w.pump(l, near, far, false) })
	both.Wait()
}

// introductionBytesMax is within how many bytes a node says which one it is.
const introductionBytesMax = 4 << 10

// pump carries what one side says to the other. What may not pass now is held, as TCP
// holds what was not received; the sender notices when no more fits.
func (w *network) pump(l *link, dst, src net.Conn, dialed bool) {
	chunk := make([]byte, 32<<10)
	var said []byte
	for {
		n, err := src.Read(chunk)
		if n > 0 {
			if dialed && len(said) < introductionBytesMax {
				said = append(said, chunk[:n]...)
				w.recognize(l, said)
			}
			if !w.await(l, dialed) {
				return
			}
			if _, err := dst.Write(chunk[:n]); err != nil {
				w.cutLink(l)
				return
			}
		}
		if err == nil {
			continue
		}
		if tcp, ok := dst.(*net.TCPConn); !ok || !w.await(l, dialed) || tcp.CloseWrite() != nil {
			w.cutLink(l)
		}
		return
	}
}

func (w *network) cutLink(l *link) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.cutLocked(l)
}

// await waits until what one side says may pass. It is false if the link was cut.
func (w *network) await(l *link, dialed bool) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	for !l.cut {
		a, b := l.from, l.to
		if !dialed {
			a, b = b, a
		}
		if w.passesLocked(a, b) {
			return true
		}
		w.moved.Wait()
	}
	return false
}

// recognize looks for the address of a node in what was said first. Of one that begins
// with another, the longer is meant.
func (w *network) recognize(l *link, said []byte) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if l.from != stranger {
		return
	}
	longest := 0
	for i, d := range w.doors {
		if len(d.addr) > longest && bytes.Contains(said, []byte(d.addr)) {
			l.from, longest = i, len(d.addr)
		}
	}
	if l.from != stranger {
		w.judgeLocked(l)
	}
}
