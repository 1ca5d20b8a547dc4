package gateway

import (
	"cmp"
	"io/fs"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/mailgw/mailgw/internal/settings"
	"github.com/mailgw/mailgw/xforward"
)

// A Config is what gateway.toml says; the comments there are the reference
// of its keys. Load returns one that was checked.
type Config struct {
	Hostname        string                   `toml:"hostname"`
	User            string                   `toml:"user"`  // that serve runs as
	Group           string                   `toml:"group"` // of that user
	ShutdownTimeout time.Duration            `toml:"shutdown_timeout"`
	PluginDirectory string                   `toml:"plugin_directory"`
	Log             LogConfig                `toml:"log"`
	Spool           SpoolConfig              `toml:"spool"`
	Listeners       []ListenerConfig         `toml:"listener"`
	Backends        map[string]BackendConfig `toml:"backend"`
	NamedRoutes     map[string][]string      `toml:"named_routes"` // name to backends

	// Credential is what Load made of User and Group. nil: as mailgw was
	// started.
	Credential *syscall.Credential

	// Dir is the directory of the file. Relative paths in the file begin
	// there; those above are absolute already.
	Dir string

	file  string
	lines settings.Lines
}

// LogConfig says what is logged, and how.
type LogConfig struct {
	Level  string `toml:"level"`  // debug, info, warn, error
	Format string `toml:"format"` // text, json
}

// SpoolConfig says where messages are kept while they are under way.
type SpoolConfig struct {
	Directory string        `toml:"directory"` // of the temporary files
	Memory    settings.Size `toml:"memory"`    // of all messages together
	Threshold settings.Size `toml:"threshold"` // of one message, from which on it is in a file
}

// A ListenerConfig is one listening socket and what holds for its sessions.
type ListenerConfig struct {
	Name     string      `toml:"name"`
	Address  string      `toml:"address"`  // tcp:HOST:PORT, unix:PATH, unix:@NAME
	Protocol string      `toml:"protocol"` // smtp, lmtp
	Mode     fs.FileMode `toml:"mode"`     // of the unix socket
	Owner    string      `toml:"owner"`    // of the unix socket
	Group    string      `toml:"group"`    // of the unix socket

	TLS               TLSConfig  `toml:"tls"`
	RequireTLS        bool       `toml:"require_tls"`
	TLSSenders        []string   `toml:"tls_senders"` // patterns
	Auth              AuthConfig `toml:"auth"`
	AuthSenders       []string   `toml:"auth_senders"` // patterns
	Ask               []string   `toml:"ask"`          // backends
	XForward          []string   `toml:"xforward"`     // trusted peers
	OfferRequireTLS   bool       `toml:"offer_requiretls"`
	XClient           []string   `toml:"xclient"` // trusted peers
	Proxy             []string   `toml:"proxy"`   // trusted peers
	DSN               bool       `toml:"dsn"`
	Mirror            bool       `toml:"mirror"`
	Chunking          bool       `toml:"chunking"`
	OneRoute          bool       `toml:"one_route"`
	StrictEnvelopes   bool       `toml:"strict_envelopes"`
	UnknownParameters string     `toml:"unknown_parameters"` // refuse, keep
	BareNewlines      string     `toml:"bare_newlines"`      // refuse, pass

	UnauthorizedPipelining string `toml:"unauthorized_pipelining"` // refuse, pass

	Limits     LimitsConfig        `toml:"limits"`
	Senders    AccessConfig        `toml:"senders"`
	Recipients AccessConfig        `toml:"recipients"`
	Rates      []RateConfig        `toml:"rate"`
	Routes     map[string][]string `toml:"routes"` // pattern to backends

	// What Load made of the above.
	trust, xclientTrust, proxyTrust xforward.Trust
	senders                         access
	recipients                      access
	routes                          patterns[*route]
	tlsSenders, authSenders         patterns[bool]
}

// A TLSConfig says whether and how a listener speaks TLS.
type TLSConfig struct {
	Mode               string   `toml:"mode"`                // off, starttls, implicit
	Certificates       []string `toml:"certificates"`        // files
	Keys               []string `toml:"keys"`                // files; if empty, keys are with the certificates
	MinVersion         string   `toml:"min_version"`         // 1.2, 1.3
	ClientCertificates string   `toml:"client_certificates"` // ignore, ask, require
	ClientCA           string   `toml:"client_ca"`           // file
}

// An AuthConfig says what AUTH offers, if a backend in Ask can decide.
type AuthConfig struct {
	Mechanisms []string `toml:"mechanisms"`
	InClear    bool     `toml:"in_clear"` // without TLS, too
	Required   bool     `toml:"required"`
}

// LimitsConfig are the limits of one listener. For sizes and counts zero means
// no limit, but for CommandLine.
type LimitsConfig struct {
	MessageSize        settings.Size `toml:"message_size"`
	HeaderSize         settings.Size `toml:"header_size"`
	HeaderFields       int           `toml:"header_fields"`
	Hops               int           `toml:"hops"`
	MIMEDepth          int           `toml:"mime_depth"`
	MIMEParts          int           `toml:"mime_parts"`
	Recipients         int           `toml:"recipients"`
	Connections        int           `toml:"connections"`
	ConnectionsPerPeer int           `toml:"connections_per_peer"`
	CommandLine        settings.Size `toml:"command_line"`
	BadCommands        int           `toml:"bad_commands"`
	ErrorDelay         time.Duration `toml:"error_delay"`
	GreetDelay         time.Duration `toml:"greet_delay"`
	CommandTimeout     time.Duration `toml:"command_timeout"`
	MessageTimeout     time.Duration `toml:"message_timeout"`
	AskTimeout         time.Duration `toml:"ask_timeout"`
	AnswerTimeout      time.Duration `toml:"answer_timeout"`
	SessionTimeout     time.Duration `toml:"session_timeout"`
}

// InForce returns the limits that hold, with what stands for those that are
// not set.
func (l LimitsConfig) InForce() LimitsConfig {
	if l.MIMEDepth != 0 || l.MIMEParts != 0 {
		l.MIMEDepth = cmp.Or(l.MIMEDepth, maxMIMEDepth)
		l.MIMEParts = cmp.Or(l.MIMEParts, maxMIMEParts)
	}
	return l
}

// A RateConfig says how much mail may come under one key. Zero means no limit.
type RateConfig struct {
	By         string        `toml:"by"` // client, user, sender, sender_domain, recipient, recipient_domain
	Messages   int           `toml:"messages"`
	Recipients int           `toml:"recipients"`
	Bytes      settings.Size `toml:"bytes"`
	Per        time.Duration `toml:"per"`
	AtOnce     int           `toml:"at_once"`     // transactions
	IPv4Prefix int           `toml:"ipv4_prefix"` // of a client
	IPv6Prefix int           `toml:"ipv6_prefix"`
}

// AccessConfig says who is allowed and who is denied.
type AccessConfig struct {
	Allow     []string `toml:"allow"`
	AllowFile string   `toml:"allow_file"`
	Deny      []string `toml:"deny"`
	DenyFile  string   `toml:"deny_file"`
	Reply     string   `toml:"reply"` // "550 5.7.1 text"
}

// A BackendConfig is one backend.
type BackendConfig struct {
	Plugin                   string            `toml:"plugin"` // a name that ships, the path of a program, or unix:PATH
	Args                     []string          `toml:"args"`
	Env                      map[string]string `toml:"env"`
	Checksum                 string            `toml:"checksum"` // of the program, sha256:HEX
	Timeout                  time.Duration     `toml:"timeout"`
	Instances                int               `toml:"instances"`
	OnFailure                string            `toml:"on_failure"`     // tempfail, pass, reject
	PoisonCrashes            int               `toml:"poison_crashes"` // 0: never mind
	PoisonRoute              string            `toml:"poison_route"`   // a named route
	ShadowOf                 string            `toml:"shadow_of"`      // a backend
	ShadowShare              float64           `toml:"shadow_share"`   // percent
	RecipientsPerTransaction int               `toml:"recipients_per_transaction"`
	Transactions             int               `toml:"transactions"`       // under way
	ReplaceMemory            settings.Size     `toml:"replace_memory"`     // 0: never mind
	ReplaceOpenFiles         int               `toml:"replace_open_files"` // 0: never mind
	Sandbox                  SandboxConfig     `toml:"sandbox"`
	Settings                 map[string]any    `toml:"settings"`
}

// A SandboxConfig is what a plugin is kept in. Zero limits are none.
type SandboxConfig struct {
	User            string        `toml:"user"`
	Group           string        `toml:"group"`
	Directory       string        `toml:"directory"`
	Memory          settings.Size `toml:"memory"`
	OpenFiles       int           `toml:"open_files"`
	Processes       int           `toml:"processes"`
	CPU             time.Duration `toml:"cpu"`
	ReadPaths       []string      `toml:"read_paths"`
	WritePaths      []string      `toml:"write_paths"`
	NoNewPrivileges bool          `toml:"no_new_privileges"`
	BestEffort      bool          `toml:"best_effort"`

	// Credential is what Load made of User and Group. nil: as mailgw.
	Credential *syscall.Credential
}

const attachedPrefix = "unix:"

// Attached returns the socket of a plugin that was started by hand. It is empty
// for one that mailgw starts.
func (b BackendConfig) Attached() string {
	path, ok := strings.CutPrefix(b.Plugin, attachedPrefix)
	if !ok {
		return ""
	}
	return path
}

// SetDefaults sets what holds for keys that are not given.
func (c *Config) SetDefaults() {
	c.ShutdownTimeout = 30 * time.Second
	c.Log = LogConfig{Level: "info", Format: "text"}
	c.Spool = SpoolConfig{Directory: "/var/tmp", Memory: 64 << 20, Threshold: 256 << 10}
}

func (l *ListenerConfig) SetDefaults() {
	l.Mode = 0o660
	l.TLS = TLSConfig{Mode: "off", MinVersion: "1.2", ClientCertificates: "ignore"}
	l.Auth.Mechanisms = slices.Clone(authMechanisms)
	l.UnknownParameters = "refuse"
	l.BareNewlines = "refuse"
	l.UnauthorizedPipelining = "pass"
	l.Limits = LimitsConfig{
		MessageSize:        50 << 20,
		HeaderSize:         1 << 20,
		HeaderFields:       10000,
		Hops:               100,
		Recipients:         1000,
		Connections:        1000,
		ConnectionsPerPeer: 0,
		CommandLine:        2048,
		BadCommands:        10,
		CommandTimeout:     5 * time.Minute,
		MessageTimeout:     30 * time.Minute,
		AskTimeout:         90 * time.Second,
		AnswerTimeout:      9 * time.Minute,
		SessionTimeout:     24 * time.Hour,
	}
	l.Senders.Reply = "550 5.7.1 sender refused"
	l.Recipients.Reply = "550 5.7.1 recipient refused"
}

func (r *RateConfig) SetDefaults() {
	*r = RateConfig{Per: time.Hour, IPv4Prefix: 32, IPv6Prefix: 64}
}

func (b *BackendConfig) SetDefaults() {
	b.Timeout = 5 * time.Minute
	b.Instances = 1
	b.OnFailure = "tempfail"
	b.PoisonCrashes = 3
	b.ShadowShare = 100
	b.Sandbox = SandboxConfig{ReadPaths: []string{"/"}, WritePaths: []string{"/"}, NoNewPrivileges: true}
}
