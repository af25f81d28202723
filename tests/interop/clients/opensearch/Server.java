import java.io.IOException;
import java.io.InputStream;
import java.nio.file.Files;
import java.nio.file.Path;
import java.security.GeneralSecurityException;
import java.security.KeyStore;
import java.util.List;
import java.util.Map;
import java.util.Optional;
import javax.net.ssl.KeyManagerFactory;
import javax.net.ssl.SSLContext;
import javax.net.ssl.SSLEngine;
import javax.net.ssl.SSLException;
import org.opensearch.analysis.common.CommonAnalysisPlugin;
import org.opensearch.common.settings.Settings;
import org.opensearch.env.Environment;
import org.opensearch.http.HttpServerTransport;
import org.opensearch.ingest.common.IngestCommonPlugin;
import org.opensearch.node.InternalSettingsPreparer;
import org.opensearch.node.Node;
import org.opensearch.plugins.Plugin;
import org.opensearch.plugins.SecureHttpTransportSettingsProvider;
import org.opensearch.plugins.SecureSettingsFactory;
import org.opensearch.plugins.SecureTransportSettingsProvider;
import org.opensearch.plugins.TransportExceptionHandler;
import org.opensearch.script.mustache.MustachePlugin;
import org.opensearch.transport.Netty4Plugin;

/**
 * One node of OpenSearch with the modules that bulk requests, templates and ingest pipelines need.
 *
 * <p>Arguments: the folder of the data, the port of HTTPS, the port between nodes, a PKCS#12 file
 * with the key of HTTPS, its password.
 */
public final class Server extends Node {
    private Server(Environment environment) {
        super(environment, List.of(Netty4Plugin.class, CommonAnalysisPlugin.class,
                IngestCommonPlugin.class, MustachePlugin.class, HTTPS.class), true);
    }

    public static void main(String[] arguments) throws Exception {
        HTTPS.keyStore = Path.of(arguments[3]);
        HTTPS.password = arguments[4].toCharArray();
        Settings settings = Settings.builder()
                .put("path.home", arguments[0])
                .put("cluster.name", "siem")
                .put("node.name", "siem-0")
                .put("discovery.type", "single-node")
                .put("network.host", "127.0.0.1")
                .put("http.port", arguments[1])
                .put("http.type", "netty4-secure")
                .put("transport.port", arguments[2])
                .put("cluster.routing.allocation.disk.threshold_enabled", false)
                .build();
        Node node = new Server(
                InternalSettingsPreparer.prepareEnvironment(settings, Map.of(), null, () -> "siem-0"));
        node.start();
        Runtime.getRuntime().addShutdownHook(new Thread(() -> {
            try {
                node.close();
            } catch (IOException e) {
                throw new IllegalStateException(e);
            }
        }));
        Thread.currentThread().join();
    }

    /** The TLS of HTTP, which OpenSearch's own distribution has from its security plugin. */
    public static final class HTTPS extends Plugin implements SecureSettingsFactory,
            SecureHttpTransportSettingsProvider {
        private static Path keyStore;
        private static char[] password;

        @Override
        public Optional<SecureSettingsFactory> getSecureSettingFactory(Settings settings) {
            return Optional.of(this);
        }

        @Override
        public Optional<SecureTransportSettingsProvider> getSecureTransportSettingsProvider(
                Settings settings) {
            return Optional.empty();
        }

        @Override
        public Optional<SecureHttpTransportSettingsProvider> getSecureHttpTransportSettingsProvider(
                Settings settings) {
            return Optional.of(this);
        }

        @Override
        public Optional<TransportExceptionHandler> buildHttpServerExceptionHandler(
                Settings settings, HttpServerTransport transport) {
            return Optional.empty();
        }

        @Override
        public Optional<SSLEngine> buildSecureHttpServerEngine(
                Settings settings, HttpServerTransport transport) throws SSLException {
            try (InputStream file = Files.newInputStream(keyStore)) {
                KeyStore store = KeyStore.getInstance("PKCS12");
                store.load(file, password);
                KeyManagerFactory keys =
                        KeyManagerFactory.getInstance(KeyManagerFactory.getDefaultAlgorithm());
                keys.init(store, password);
                SSLContext context = SSLContext.getInstance("TLS");
                context.init(keys.getKeyManagers(), null, null);
                SSLEngine engine = context.createSSLEngine();
                engine.setUseClientMode(false);
                return Optional.of(engine);
            } catch (IOException | GeneralSecurityException e) {
                throw new SSLException("the key of HTTPS cannot be used", e);
            }
        }
    }
}
