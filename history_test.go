package colmena_test

import (
	"cmp"
	"fmt"
	"math"
	"slices"
	"strings"
)

// history is what the clients of a database of lists saw. check derives from it, after
// Adya's definitions of isolation, which transaction must have come before which, and
// finds what no serial order that respects real time explains. Every value is appended once, so
// a read of a list tells in which order all that is in it was appended.
type history []txn

// txn is one transaction of a history.
type txn struct {
	name       string
	begin, end int64 // moments; end is when its client learnt of it
	outcome    txnOutcome
	ops        []listOp // in order
}

type txnOutcome int

const (
	txnCommitted txnOutcome = iota
	txnAborted
	txnUnknown // committed if somebody saw something of it
)

// listOp appends one value to a list, or reads the list.
type listOp struct {
	key    int
	append bool
	value  int   // appended
	read   []int // seen
}

// anomalyKind names what a history shows.
type anomalyKind string

const (
	anomalyG0      anomalyKind = "G0: writes in a circle"
	anomalyG1a     anomalyKind = "G1a: a read of what was aborted"
	anomalyG1b     anomalyKind = "G1b: a read of what was not final"
	anomalyG1c     anomalyKind = "G1c: information flows in a circle"
	anomalySingle  anomalyKind = "G-single: a read is older than what else its transaction rests on"
	anomalyG2      anomalyKind = "G2: transactions that each missed the other's writes"
	anomalyOrder   anomalyKind = "reads that part on the order of writes"
	anomalyOwn     anomalyKind = "a transaction that does not see its own writes, or sees a list change under it"
	anomalyGarbage anomalyKind = "a read of what nobody wrote, or of a value twice"
	anomalyReused  anomalyKind = "a value that was appended twice"
)

// anomaly is one violation. realTime says that it needs the order of the clients' clock.
type anomaly struct {
	kind     anomalyKind
	realTime bool
	detail   string
}

func (a anomaly) String() string {
	if a.realTime {
		return fmt.Sprintf("%s, in real time: %s", a.kind, a.detail)
	}
	return fmt.Sprintf("%s: %s", a.kind, a.detail)
}

// valueOf tells where a value of a list comes from.
type valueOf struct {
	txn   int
	final bool // the last that its transaction appends to the list
}

type listValue struct{ key, value int }

// checker is the work on one history.
type checker struct {
	h       history
	from    map[listValue]valueOf
	orders  map[int][]int // of each list, the longest that was read
	seen    map[int]bool  // transactions something of which was read
	outside []listRead
	found   []anomaly
	graph   *txnGraph
}

// listRead is what a transaction saw of a list that was not its own.
type listRead struct {
	txn, key int
	values   []int
}

// check returns the anomalies of a history.
func (h history) check() []anomaly {
	c := &checker{h: h, from: map[listValue]valueOf{}, orders: map[int][]int{}, seen: map[int]bool{}}
	c.learnValues()
	for i := range h {
		if h[i].outcome == txnCommitted {
			c.readsOf(i)
		}
	}
	c.learnOrders()
	c.graph = newTxnGraph(len(h))
	c.orderVersions()
	cycles := c.graph.cycles(c.names, false)
	if len(cycles) == 0 {
		c.orderTime()
		cycles = c.graph.cycles(c.names, true)
	}
	return append(c.found, cycles...)
}

func (c *checker) report(kind anomalyKind, format string, args ...any) {
	c.found = append(c.found, anomaly{kind: kind, detail: fmt.Sprintf(format, args...)})
}

func (c *checker) names(i int) string { return c.h[i].name }

func (c *checker) learnValues() {
	for i := range c.h {
		last := map[int]listValue{}
		for _, o := range c.h[i].ops {
			if !o.append {
				continue
			}
			v := listValue{o.key, o.value}
			if _, twice := c.from[v]; twice {
				c.report(anomalyReused, "%s appends %d to list %d", c.h[i].name, o.value, o.key)
			}
			c.from[v] = valueOf{txn: i}
			last[o.key] = v
		}
		for _, v := range last {
			c.from[v] = valueOf{i, true}
		}
	}
}

// readsOf judges the reads of a committed transaction, each by itself and against those
// before it.
func (c *checker) readsOf(i int) {
	t := &c.h[i]
	base, own := map[int][]int{}, map[int][]int{}
	for _, o := range t.ops {
		if o.append {
			own[o.key] = append(own[o.key], o.value)
			continue
		}
		n := len(o.read) - len(own[o.key])
		if n < 0 || !slices.Equal(o.read[n:], own[o.key]) {
			c.report(anomalyOwn, "%s reads %v of list %d after it appended %v", t.name, o.read, o.key, own[o.key])
			continue
		}
		before, again := base[o.key]
		if again && !slices.Equal(before, o.read[:n]) {
			c.report(anomalyOwn, "%s reads %v of list %d after %v", t.name, o.read[:n], o.key, before)
			continue
		}
		base[o.key] = o.read[:n]
		if !again && c.judge(t, o.key, o.read[:n]) {
			c.outside = append(c.outside, listRead{i, o.key, o.read[:n]})
		}
	}
}

// judge reports whether a read can be placed in the order of a list.
func (c *checker) judge(t *txn, key int, values []int) bool {
	once := map[int]bool{}
	for k, v := range values {
		from, known := c.from[listValue{key, v}]
		if !known || once[v] {
			c.report(anomalyGarbage, "%s reads %d in list %d: %v", t.name, v, key, values)
			return false
		}
		once[v] = true
		writer := &c.h[from.txn]
		if writer.outcome == txnAborted {
			c.report(anomalyG1a, "%s reads %d in list %d, of %s", t.name, v, key, writer.name)
			return false
		}
		if k == len(values)-1 && !from.final && writer != t {
			c.report(anomalyG1b, "%s reads %v in list %d, to which %s appends more than %d", t.name, values, key, writer.name, v)
		}
		c.seen[from.txn] = true
	}
	return true
}

// learnOrders takes the longest read of each list for its order. All others must begin it.
func (c *checker) learnOrders() {
	for _, r := range c.outside {
		if len(r.values) > len(c.orders[r.key]) {
			c.orders[r.key] = r.values
		}
	}
	kept := c.outside[:0]
	for _, r := range c.outside {
		if order := c.orders[r.key]; !slices.Equal(order[:len(r.values)], r.values) {
			c.report(anomalyOrder, "list %d: %s reads %v, another %v", r.key, c.h[r.txn].name, r.values, order)
			continue
		}
		kept = append(kept, r)
	}
	c.outside = kept
}

// happened reports whether a transaction is known to have committed.
func (c *checker) happened(i int) bool {
	return c.h[i].outcome == txnCommitted || c.h[i].outcome == txnUnknown && c.seen[i]
}

// orderVersions draws what the orders of the lists say of their writers and readers. What was
// appended and never read comes after all that its readers did see.
func (c *checker) orderVersions() {
	unread := map[int][]int{} // writers, by list
	placed := map[listValue]bool{}
	for key, order := range c.orders {
		for k, v := range order {
			placed[listValue{key, v}] = true
			if k > 0 {
				c.graph.add(c.from[listValue{key, order[k-1]}].txn, c.from[listValue{key, v}].txn, edgeWW)
			}
		}
	}
	for v, from := range c.from {
		if !placed[v] && c.happened(from.txn) {
			unread[v.key] = append(unread[v.key], from.txn)
		}
	}
	for _, r := range c.outside {
		if n := len(r.values); n > 0 {
			c.graph.add(c.from[listValue{r.key, r.values[n-1]}].txn, r.txn, edgeWR)
		}
		if order := c.orders[r.key]; len(r.values) < len(order) {
			c.graph.add(r.txn, c.from[listValue{r.key, order[len(r.values)]}].txn, edgeRW)
			continue
		}
		for _, w := range unread[r.key] {
			c.graph.add(r.txn, w, edgeRW)
		}
	}
}

// orderTime draws that what had ended came before what began later. Instead of an edge for
// each pair there is a moment, a node of its own, for each end, and moments follow one another.
func (c *checker) orderTime() {
	var ended []int
	for i := range c.h {
		if c.h[i].outcome == txnCommitted && c.h[i].end < math.MaxInt64 {
			ended = append(ended, i)
		}
	}
	slices.SortFunc(ended, func(a, b int) int { return cmp.Compare(c.h[a].end, c.h[b].end) })
	first := c.graph.moments(len(ended))
	for k, i := range ended {
		c.graph.add(i, first+k, edgeTime)
		if k > 0 {
			c.graph.add(first+k-1, first+k, edgeTime)
		}
	}
	for i := range c.h {
		if !c.happened(i) {
			continue
		}
		k, _ := slices.BinarySearchFunc(ended, c.h[i].begin, func(e int, begin int64) int { return cmp.Compare(c.h[e].end, begin) })
		if k > 0 {
			c.graph.add(first+k-1, i, edgeTime)
		}
	}
}

type edgeKind uint8

const (
	edgeWW   edgeKind = 1 << iota // wrote the version before
	edgeWR                        // wrote what the other read
	edgeRW                        // read the version before the one that the other wrote
	edgeTime                      // ended before the other began
)

var edgeTexts = map[edgeKind]string{edgeWW: "ww", edgeWR: "wr", edgeRW: "rw", edgeTime: "time"}

type edge struct {
	to   int
	kind edgeKind
}

// txnGraph says which transaction came before which, and why.
type txnGraph struct {
	txns int
	out  [][]edge
}

func newTxnGraph(n int) *txnGraph { return &txnGraph{n, make([][]edge, n)} }

func (g *txnGraph) add(a, b int, kind edgeKind) {
	if a != b {
		g.out[a] = append(g.out[a], edge{b, kind})
	}
}

// moments adds nodes that are no transactions and returns the first.
func (g *txnGraph) moments(n int) (first int) {
	first = len(g.out)
	g.out = append(g.out, make([][]edge, n)...)
	return first
}

// cycles finds, in each knot of the graph, a shortest cycle of the gravest kind there is.
func (g *txnGraph) cycles(name func(int) string, realTime bool) (found []anomaly) {
	extra := edgeKind(0)
	if realTime {
		extra = edgeTime
	}
	knots, sizes := g.knots()
	for k, size := range sizes {
		if size < 2 {
			continue
		}
		in := func(i int) bool { return knots[i] == k }
		for _, try := range []struct {
			kind  anomalyKind
			first edgeKind // the edge that the cycle begins with
			rest  edgeKind // those that may follow
		}{
			{anomalyG0, edgeWW, edgeWW | extra}, {anomalyG1c, edgeWR, edgeWW | edgeWR | extra},
			{anomalySingle, edgeRW, edgeWW | edgeWR | extra}, {anomalyG2, edgeRW, edgeWW | edgeWR | edgeRW | extra},
		} {
			if path := g.cycle(in, try.first, try.rest); path != nil {
				found = append(found, anomaly{try.kind, realTime, g.tell(path, name)})
				break
			}
		}
	}
	return found
}

// hop is an edge and where it begins.
type hop struct {
	from int
	edge
}

// cycle is a shortest path that begins with an edge of one kind and comes back to its start
// over others. Among the nodes in which in holds.
func (g *txnGraph) cycle(in func(int) bool, first, rest edgeKind) (best []hop) {
	for a := range g.out {
		if !in(a) {
			continue
		}
		for _, e := range g.out[a] {
			if e.kind != first || !in(e.to) {
				continue
			}
			if path := g.path(e.to, a, in, rest); path != nil && (best == nil || len(path)+1 < len(best)) {
				if best = append([]hop{{a, e}}, path...); len(best) == 2 {
					return best
				}
			}
		}
	}
	return best
}

// path is a shortest one from a to b.
func (g *txnGraph) path(a, b int, in func(int) bool, kinds edgeKind) []hop {
	came := map[int]hop{a: {from: -1}}
	for queue := []int{a}; len(queue) > 0; queue = queue[1:] {
		for _, e := range g.out[queue[0]] {
			if _, known := came[e.to]; known || e.kind&kinds == 0 || !in(e.to) {
				continue
			}
			came[e.to] = hop{queue[0], e}
			if e.to != b {
				queue = append(queue, e.to)
				continue
			}
			var path []hop
			for at := b; at != a; at = came[at].from {
				path = append(path, came[at])
			}
			slices.Reverse(path)
			return path
		}
	}
	return nil
}

func (g *txnGraph) tell(path []hop, name func(int) string) string {
	var b strings.Builder
	for _, h := range path {
		if h.from < g.txns {
			b.WriteString(name(h.from))
			fmt.Fprintf(&b, " -%s-> ", edgeTexts[h.kind])
		}
	}
	b.WriteString(name(path[0].from))
	return b.String()
}

// knots numbers the strongly connected components, after Tarjan, without recursion.
func (g *txnGraph) knots() (of []int, sizes []int) {
	n := len(g.out)
	of = make([]int, n)
	index, low, next := make([]int, n), make([]int, n), make([]int, n)
	var stack, calls []int
	count := 0
	for root := range n {
		if index[root] != 0 {
			continue
		}
		calls = append(calls[:0], root)
		for len(calls) > 0 {
			v := calls[len(calls)-1]
			if index[v] == 0 {
				count++
				index[v], low[v], of[v] = count, count, -1
				stack = append(stack, v)
			}
			if next[v] < len(g.out[v]) {
				w := g.out[v][next[v]].to
				if index[w] == 0 {
					calls = append(calls, w)
					continue // and comes back to this edge
				}
				if of[w] < 0 {
					low[v] = min(low[v], low[w])
				}
				next[v]++
				continue
			}
			calls = calls[:len(calls)-1]
			if low[v] != index[v] {
				continue
			}
			size := 0
			for {
				w := stack[len(stack)-1]
				stack = stack[:len(stack)-1]
				of[w] = len(sizes)
				size++
				if w == v {
					break
				}
			}
			sizes = append(sizes, size)
		}
	}
	return of, sizes
}
