package colmena_test

import (
	"net/http/httptest"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"github.com/mentasystems/colmena"
	"github.com/mentasystems/colmena/internal/testcluster"
)

var sampleLine = regexp.MustCompile(`^(colmena_[a-z_]+)(\{(?:[a-z]+="(?:[^"\\\n]|\\["\\n])*",?)*\})? (\S+)$`)

// metrics parses what a node's handler serves: every sample has a family before it.
func metrics(t *testing.T, n *colmena.Node) map[string]float64 {
	t.Helper()
	w := httptest.NewRecorder()
	n.MetricsHandler().ServeHTTP(w, httptest.NewRequest("GET", "/metrics", nil))
	out, kinds := map[string]float64{}, map[string]bool{}
	for _, line := range strings.Split(strings.TrimSuffix(w.Body.String(), "\n"), "\n") {
		if f := strings.Fields(line); strings.HasPrefix(line, "# TYPE ") && len(f) == 4 {
			if kinds[f[2]] {
				t.Errorf("family %s is there twice", f[2])
			}
			kinds[f[2]] = true
		}
		if strings.HasPrefix(line, "#") {
			continue
		}
		m := sampleLine.FindStringSubmatch(line)
		if m == nil || !kinds[m[1]] {
			t.Fatalf("line %q is no sample of a known family", line)
		}
		v, err := strconv.ParseFloat(m[3], 64)
		if err != nil {
			t.Fatal(err)
		}
		out[m[1]+m[2]] = v
	}
	return out
}

func TestStatusAndMetricsOfASingleNode(t *testing.T) {
	n := single(t, func(c *colmena.Config) { c.NodeID = "one" })
	mustExec(t, n.DB(), "CREATE TABLE a(v)")
	for range 3 {
		mustExec(t, n.DB(), "INSERT INTO a VALUES(1)")
	}
	wantNumber(t, n, colmena.None, 3, "SELECT count(*) FROM a")
	wantNumber(t, n, colmena.Strong, 3, "SELECT count(*) FROM a")
	s := n.Status()
	if s.NodeID != "one" || s.Role != "leader" || !s.Ready || s.Leader != "one" || s.Term == 0 || s.Halted != nil || s.LastContact != 0 || s.ClusterID == "" {
		t.Errorf("status is %+v", s)
	}
	if s.AppliedIndex != n.AppliedIndex() || s.CommitIndex < s.AppliedIndex || s.LogLast < s.AppliedIndex {
		t.Errorf("indexes are %+v", s)
	}
	if len(s.Databases) != 1 || s.Databases[0].Name != "default" || s.Databases[0].Epochs != 4 || s.Databases[0].Writes != 4 || s.Databases[0].WALBytes == 0 {
		t.Errorf("databases are %+v", s.Databases)
	}
	if s.Writes < 4 || s.ForwardedWrites != 0 || s.ReadsNone != 1 || s.ReadsStrong != 1 || len(s.Members) != 1 {
		t.Errorf("counters are %+v", s)
	}
	m := metrics(t, n)
	if m[`colmena_db_epochs_total{db="default"}`] != 4 || m[`colmena_reads_total{level="None"}`] != 1 || m["colmena_leading"] != 1 || m["colmena_halted"] != 0 {
		t.Errorf("metrics are %v", m)
	}
}

func TestStatusOfAFollower(t *testing.T) {
	c := testcluster.New(t, 3)
	n := c.Node(c.Follower())
	mustExec(t, n.DB(), "CREATE TABLE a(v)")
	c.WaitConverged()
	s := n.Status()
	if s.Ready || s.Role != "follower" || s.Leader != c.Node(c.Leader()).ID() || len(s.Members) != 3 || s.ForwardedWrites == 0 || s.LastContact < 0 {
		t.Errorf("status is %+v", s)
	}
	if m := metrics(t, n); m["colmena_forwarded_writes_total"] == 0 || m["colmena_leading"] != 0 {
		t.Errorf("metrics are %v", m)
	}
}
