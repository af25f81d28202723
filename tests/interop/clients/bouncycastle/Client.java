// BouncyCastle's EST client (org.bouncycastle.est) on the JSSE of the machine, one operation a run.
//
// Arguments are name=value: operation, host, port, label, ca, csr, out, key-out, tls, user, password,
// certificate, key. Files are PEM; the certificates of the answer go to the file "out", for csrattrs
// the object identifiers do, one a line. Exit code 1: BouncyCastle raised; its message is on stderr.

import java.io.FileReader;
import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.security.KeyStore;
import java.security.PrivateKey;
import java.security.cert.X509Certificate;
import java.util.ArrayList;
import java.util.Base64;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import javax.net.ssl.KeyManagerFactory;
import javax.net.ssl.TrustManagerFactory;
import javax.net.ssl.X509TrustManager;
import org.bouncycastle.asn1.ASN1ObjectIdentifier;
import org.bouncycastle.asn1.pkcs.PrivateKeyInfo;
import org.bouncycastle.cert.X509CertificateHolder;
import org.bouncycastle.cert.jcajce.JcaX509CertificateConverter;
import org.bouncycastle.est.CSRRequestResponse;
import org.bouncycastle.est.ESTAuth;
import org.bouncycastle.est.ESTService;
import org.bouncycastle.est.EnrollmentResponse;
import org.bouncycastle.est.jcajce.JcaHttpAuthBuilder;
import org.bouncycastle.est.jcajce.JsseESTServiceBuilder;
import org.bouncycastle.openssl.PEMKeyPair;
import org.bouncycastle.openssl.PEMParser;
import org.bouncycastle.openssl.jcajce.JcaPEMKeyConverter;
import org.bouncycastle.pkcs.PKCS10CertificationRequest;
import org.bouncycastle.util.Store;

public final class Client {
    private static final char[] NO_PASSWORD = new char[0];

    private static final Map<String, String> given = new HashMap<>();

    public static void main(String[] arguments) {
        for (String argument : arguments) {
            String[] parts = argument.split("=", 2);
            given.put(parts[0], parts[1]);
        }
        try {
            run();
        } catch (Exception failure) {
            for (Throwable cause = failure; cause != null; cause = cause.getCause()) {
                System.err.println(cause);
            }
            System.exit(1);
        }
    }

    private static void run() throws Exception {
        ESTService service = service();
        switch (given.get("operation")) {
            case "cacerts":
                write(service.getCACerts().getCertificateStore());
                return;
            case "csrattrs":
                write(service.getCSRAttributes());
                return;
            case "simpleenroll":
                write(issued(service.simpleEnroll(false, csr(), auth())));
                return;
            case "simplereenroll":
                write(issued(service.simpleEnroll(true, csr(), auth())));
                return;
            case "serverkeygen":
                EnrollmentResponse made = issued(service.simpleEnrollWithServersideCreation(csr(), auth()));
                write(made);
                Files.writeString(
                    Path.of(given.get("key-out")), armoured("PRIVATE KEY", made.getPrivateKeyInfo().getEncoded()));
                return;
            default:
                throw new IllegalArgumentException(given.get("operation"));
        }
    }

    private static ESTService service() throws Exception {
        KeyStore trust = emptyStore();
        trust.setCertificateEntry("root", certificates(given.get("ca")).get(0));
        TrustManagerFactory trusting = TrustManagerFactory.getInstance("PKIX");
        trusting.init(trust);
        JsseESTServiceBuilder builder = new JsseESTServiceBuilder(
            given.get("host"), Integer.parseInt(given.get("port")), (X509TrustManager) trusting.getTrustManagers()[0]);
        builder.withTLSVersion(given.getOrDefault("tls", "TLS"));
        builder.withTimeout(20_000);
        if (given.containsKey("label")) {
            builder.withLabel(given.get("label"));
        }
        if (given.containsKey("certificate")) {
            KeyStore store = emptyStore();
            List<X509Certificate> chain = certificates(given.get("certificate"));
            store.setKeyEntry("client", privateKey(), NO_PASSWORD, chain.toArray(new X509Certificate[0]));
            KeyManagerFactory keys = KeyManagerFactory.getInstance(KeyManagerFactory.getDefaultAlgorithm());
            keys.init(store, NO_PASSWORD);
            builder.withKeyManagers(keys.getKeyManagers());
        }
        return builder.build();
    }

    private static ESTAuth auth() throws Exception {
        if (!given.containsKey("user")) {
            return null;
        }
        return new JcaHttpAuthBuilder(given.get("user"), given.get("password").toCharArray()).build();
    }

    private static EnrollmentResponse issued(EnrollmentResponse response) throws IOException {
        if (!response.isCompleted()) {
            throw new IOException("the enrollment is pending");
        }
        return response;
    }

    private static KeyStore emptyStore() throws Exception {
        KeyStore store = KeyStore.getInstance("PKCS12");
        store.load(null, NO_PASSWORD);
        return store;
    }

    private static PKCS10CertificationRequest csr() throws IOException {
        try (PEMParser parser = new PEMParser(new FileReader(given.get("csr")))) {
            return (PKCS10CertificationRequest) parser.readObject();
        }
    }

    private static PrivateKey privateKey() throws IOException {
        try (PEMParser parser = new PEMParser(new FileReader(given.get("key")))) {
            Object found = parser.readObject();
            PrivateKeyInfo info = found instanceof PEMKeyPair
                ? ((PEMKeyPair) found).getPrivateKeyInfo() : (PrivateKeyInfo) found;
            return new JcaPEMKeyConverter().getPrivateKey(info);
        }
    }

    private static List<X509Certificate> certificates(String file) throws Exception {
        List<X509Certificate> found = new ArrayList<>();
        try (PEMParser parser = new PEMParser(new FileReader(file))) {
            for (Object read = parser.readObject(); read != null; read = parser.readObject()) {
                found.add(new JcaX509CertificateConverter().getCertificate((X509CertificateHolder) read));
            }
        }
        return found;
    }

    private static void write(EnrollmentResponse response) throws IOException {
        write(response.getStore());
    }

    private static void write(Store<X509CertificateHolder> store) throws IOException {
        StringBuilder text = new StringBuilder();
        for (X509CertificateHolder certificate : store.getMatches(null)) {
            text.append(armoured("CERTIFICATE", certificate.getEncoded()));
        }
        Files.writeString(Path.of(given.get("out")), text);
    }

    private static String armoured(String label, byte[] der) {
        String body = Base64.getMimeEncoder(64, new byte[] {'\n'}).encodeToString(der);
        return "-----BEGIN " + label + "-----\n" + body + "\n-----END " + label + "-----\n";
    }

    private static void write(CSRRequestResponse response) throws Exception {
        StringBuilder text = new StringBuilder();
        if (response.hasAttributesResponse()) {
            for (Object identifier : response.getAttributesResponse().getRequirements()) {
                text.append(((ASN1ObjectIdentifier) identifier).getId()).append('\n');
            }
        }
        Files.writeString(Path.of(given.get("out")), text);
    }
}
