package colmena_test

import (
	"slices"
	"strings"
	"testing"

	"github.com/mentasystems/colmena"
	"github.com/mentasystems/colmena/internal/testcluster"
)

func TestTransactionsAreSerializableWhileLeadershipMoves(t *testing.T) {
	c := testcluster.New(t, 3)
	l := startSerialLoad(t, c, 10)
	l.await(10)
	c.WaitConverged()
	for i, n := range c.Running() {
		if i > 0 { // the first node's are parked when it so happens
			n.ParkTransactions(colmena.DefaultDatabase)
		}
	}
	for i := range max(2, size(10)) {
		l.await(60)
		if err := c.Node(i%3).TransferLeadership(limit(t), ""); err != nil {
			t.Logf("transfer: %v", err)
		}
	}
	l.await(60)
	l.wantSerial()
}

func TestTransactionsAreSerializableWhileNodesStopAndStart(t *testing.T) {
	c := testcluster.New(t, 3)
	l := startSerialLoad(t, c, 10)
	for i := range max(2, size(5)) {
		l.await(60)
		at := c.Leader()
		if i%3 == 2 {
			at = c.Follower()
		}
		c.Stop(at)
		l.await(40)
		c.Start(at)
		c.WaitReady()
	}
	l.await(60)
	l.wantSerial()
}

func TestTransactionsAreSerializableWhileTheLeaderIsCutOff(t *testing.T) {
	c := testcluster.New(t, 3)
	l := startSerialLoad(t, c, 10)
	for range max(2, size(3)) {
		l.await(60)
		isolate(c, c.Leader())
		l.await(40)
		isolate(c, -1)
		c.WaitReady()
	}
	l.await(60)
	l.wantSerial()
}

// TestSerialChecksFindAnEngineThatIsNot lets writes run while a transaction is parked, which
// is the mistake that all of this looks for.
func TestSerialChecksFindAnEngineThatIsNot(t *testing.T) {
	c := testcluster.New(t, 1)
	l := startSerialLoad(t, c, 8)
	c.Node(0).ParkTransactions(colmena.DefaultDatabase)
	c.Node(0).LetWritesPassParked(colmena.DefaultDatabase)
	l.await(max(300, size(500)))
	wrong := l.checkSerial()
	for what, texts := range map[string][]string{
		"what a client was told": {"in the order of the log it is"},
		"what the node holds":    {"plain SQLite"},
		"isolation":              {string(anomalySingle), string(anomalyG2)},
	} {
		i := slices.IndexFunc(wrong, func(w string) bool {
			return slices.ContainsFunc(texts, func(text string) bool { return strings.Contains(w, text) })
		})
		if i < 0 {
			t.Errorf("none of %d findings is of %s", len(wrong), what)
			continue
		}
		t.Logf("%s: %.400s", what, wrong[i])
	}
}
