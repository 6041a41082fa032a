package transport

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net/url"
	"strings"
	"time"
)

const nodeScheme = "colmena"

// NodeURI is the URI SAN that binds a certificate to a node.
func NodeURI(nodeID string) *url.URL { return &url.URL{Scheme: nodeScheme, Host: nodeID} }

// serverTLS asks for the present configuration and makes it mutual, whatever it
// says: a callback of the application's may narrow, never widen.
func (t *Transport) serverTLS() (*tls.Config, error) {
	cfg, err := t.askTLS()
	if err != nil {
		return nil, err
	}
	return hardenServer(cfg)
}

func hardenServer(cfg *tls.Config) (*tls.Config, error) {
	if cfg.ClientCAs == nil {
		cfg.ClientCAs = cfg.RootCAs
	}
	if cfg.ClientCAs == nil {
		return nil, errNoCAs
	}
	cfg.ClientAuth = tls.RequireAndVerifyClientCert
	cfg.SessionTicketsDisabled = true // a resumed session would outlive the CA it was verified by
	if inner := cfg.GetConfigForClient; inner != nil {
		cfg.GetConfigForClient = func(hi *tls.ClientHelloInfo) (*tls.Config, error) {
			c, err := inner(hi)
			if c == nil || err != nil {
				return nil, err
			}
			c = c.Clone()
			c.GetConfigForClient = nil
			c.MinVersion = max(c.MinVersion, tls.VersionTLS12)
			return hardenServer(c)
		}
	}
	return cfg, nil
}

// clientTLS is the configuration of one outbound handshake. crypto/tls insists on
// a host name; nodes are verified by chain and node ID instead, so its own
// verification is replaced by verifyServer.
func (t *Transport) clientTLS() (*tls.Config, error) {
	cfg, err := t.askTLS()
	if err != nil {
		return nil, err
	}
	roots := cfg.RootCAs
	if roots == nil {
		roots = cfg.ClientCAs
	}
	if roots == nil {
		return nil, errNoCAs
	}
	if len(cfg.Certificates) == 0 && cfg.GetClientCertificate == nil {
		return nil, errors.New("colmena: the TLS configuration has no certificate to present (Certificates)")
	}
	cfg.ClientSessionCache = nil
	cfg.InsecureSkipVerify = true
	inner, now, name := cfg.VerifyConnection, cfg.Time, cfg.ServerName
	cfg.VerifyConnection = func(state tls.ConnectionState) error {
		if err := verifyServer(state, roots, now, name); err != nil {
			return err
		}
		if inner != nil {
			return inner(state)
		}
		return nil
	}
	return cfg, nil
}

var errNoCAs = errors.New("colmena: the TLS configuration has neither RootCAs nor ClientCAs: anybody would be let in")

func (t *Transport) askTLS() (*tls.Config, error) {
	cfg, err := t.cfg.TLS()
	if err != nil {
		return nil, fmt.Errorf("colmena: TLS configuration: %w", err)
	}
	if cfg == nil {
		return nil, errors.New("colmena: TLS configuration: the function returned nil")
	}
	cfg = cfg.Clone()
	cfg.MinVersion = max(cfg.MinVersion, tls.VersionTLS12)
	cfg.NextProtos = nil // one protocol on this port, told apart by the hello
	return cfg, nil
}

// verifyServer verifies a listener's chain, and its host name if one is
// configured and the certificate is not bound to a node ID instead.
func verifyServer(state tls.ConnectionState, roots *x509.CertPool, now func() time.Time, name string) error {
	if len(state.PeerCertificates) == 0 {
		return fmt.Errorf("%w: no certificate", ErrAuth)
	}
	leaf := state.PeerCertificates[0]
	opts := x509.VerifyOptions{Roots: roots, Intermediates: x509.NewCertPool()}
	if now != nil {
		opts.CurrentTime = now()
	}
	if name != "" && len(nodeURIs(leaf)) == 0 {
		opts.DNSName = name
	}
	for _, c := range state.PeerCertificates[1:] {
		opts.Intermediates.AddCert(c)
	}
	_, err := leaf.Verify(opts)
	return err
}

// checkNodeCert holds a certificate that is bound to a node to the hello's node ID.
func checkNodeCert(cert *x509.Certificate, nodeID string) error {
	if cert == nil {
		return nil
	}
	uris := nodeURIs(cert)
	if len(uris) == 0 {
		return nil
	}
	for _, u := range uris {
		if u == nodeID {
			return nil
		}
		if plain, err := url.PathUnescape(u); err == nil && plain == nodeID {
			return nil
		}
	}
	return fmt.Errorf("%w: its certificate is bound to node %q and its hello says %q", ErrAuth, uris[0], nodeID)
}

// nodeURIs returns what follows colmena:// in the certificate's URI SANs.
func nodeURIs(cert *x509.Certificate) []string {
	var out []string
	for _, u := range cert.URIs {
		if strings.EqualFold(u.Scheme, nodeScheme) {
			_, rest, _ := strings.Cut(u.String(), "://")
			out = append(out, rest)
		}
	}
	return out
}

// tlsBinding identifies the TLS session, the same on both sides; nil where the
// session cannot be exported (TLS 1.2 without extended master secret), which both
// sides know alike.
func tlsBinding(state tls.ConnectionState) []byte {
	b, err := state.ExportKeyingMaterial("EXPORTER-colmena-handshake", nil, 32)
	if err != nil {
		return nil
	}
	return b
}
